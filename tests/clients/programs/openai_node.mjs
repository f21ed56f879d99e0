// OpenAI's package for Node.
import assert from 'node:assert'
import OpenAI from 'openai'
import { EMBEDDER, KEY, MODEL, URL, feature, main } from './features.mjs'

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY })
const messages = [{ role: 'user', content: 'Say hi' }]

feature('chat', async () => {
  const answer = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 16 })
  assert(answer.choices[0].message.content)
})

feature('chat, streamed', async () => {
  const asked = { model: MODEL, messages, max_tokens: 16, temperature: 0 }
  const whole = await client.chat.completions.create(asked)
  let text = ''
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? ''
  }
  assert.equal(text, whole.choices[0].message.content)
})

feature('tools, forced', async () => {
  const parameters = { type: 'object', properties: { city: { type: 'string', maxLength: 20 } }, required: ['city'] }
  const answer = await client.chat.completions.create({
    model: MODEL,
    messages: [{ role: 'user', content: 'Weather in Rome?' }],
    tools: [{ type: 'function', function: { name: 'weather', parameters } }],
    tool_choice: 'required',
    max_tokens: 64,
  })
  assert('city' in JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments))
})

feature('responses, streamed', async () => {
  const stream = client.responses.stream({ model: MODEL, input: 'Say hi', max_output_tokens: 16 })
  assert((await stream.finalResponse()).output_text)
})

feature('embeddings', async () => {
  const answer = await client.embeddings.create({ model: EMBEDDER, input: ['a', 'b'] })
  assert.equal(answer.data[1].embedding.length, 384)
})

await main()
