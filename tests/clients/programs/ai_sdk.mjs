// Vercel's AI SDK, with its provider for servers like OpenAI's.
import assert from 'node:assert'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embed, generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from 'ai'
import { EMBEDDER, KEY, MODEL, URL, feature, main } from './features.mjs'

const provider = createOpenAICompatible({
  name: 'headrace', baseURL: `${URL}/v1`, apiKey: KEY, supportsStructuredOutputs: true, includeUsage: true,
})
const model = provider(MODEL)
const schema = jsonSchema({
  type: 'object',
  properties: { name: { type: 'string', maxLength: 20 } },
  required: ['name'],
  additionalProperties: false,
})

feature('text', async () => {
  assert((await generateText({ model, prompt: 'Say hi', maxOutputTokens: 16 })).text)
})

feature('text, streamed', async () => {
  let text = ''
  for await (const part of streamText({ model, prompt: 'Say hi', maxOutputTokens: 16 }).textStream) text += part
  assert(text)
})

feature('object', async () => {
  const { object } = await generateObject({ model, schema, prompt: 'A city', maxOutputTokens: 64 })
  assert('name' in object)
})

feature('object, streamed', async () => {
  const { partialObjectStream, object } = streamObject({ model, schema, prompt: 'A city', maxOutputTokens: 64 })
  let last
  for await (const part of partialObjectStream) last = part
  assert.deepEqual(last, await object)
})

feature('tools, forced', async () => {
  const weather = tool({ description: 'weather of a city', inputSchema: schema })
  const { toolCalls } = await generateText({
    model, tools: { weather }, toolChoice: 'required', prompt: 'Weather in Rome?', maxOutputTokens: 64,
  })
  assert.equal(toolCalls[0].toolName, 'weather')
})

feature('tool call, streamed, and its result', async () => {
  const weather = tool({ description: 'weather of a city', inputSchema: schema, execute: () => 'sunny' })
  const result = streamText({
    model, tools: { weather }, prompt: 'Weather in Rome?', maxOutputTokens: 64, stopWhen: stepCountIs(2),
    providerOptions: { headrace: { parallel_tool_calls: false } }, // a second call would be cut by the limit
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
  })
  const steps = await result.steps
  assert.equal(steps[0].toolResults[0].output, 'sunny')
  assert(steps[1].text)
})

feature('responses API', async () => {
  const openai = createOpenAI({ baseURL: `${URL}/v1`, apiKey: KEY })
  assert((await generateText({ model: openai.responses(MODEL), prompt: 'Say hi', maxOutputTokens: 16 })).text)
})

feature('embeddings', async () => {
  const { embedding } = await embed({ model: provider.textEmbeddingModel(EMBEDDER), value: 'a' })
  assert.equal(embedding.length, 384)
})

await main()
