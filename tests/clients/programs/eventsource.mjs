// EventSource, as browsers have it: it resumes a job's stream by the id of its last event.
import assert from 'node:assert'
import { EventSource } from 'eventsource'
import { KEY, LIMIT_MS, MODEL, URL, feature, main } from './features.mjs'

const headers = { authorization: `Bearer ${KEY}`, 'content-type': 'application/json' }
const withKey = (url, init) => fetch(url, { ...init, headers: { ...init.headers, authorization: headers.authorization } })

const newJob = async () => {
  const messages = [{ role: 'user', content: 'Say hi' }]
  const body = JSON.stringify({ model: MODEL, messages, max_tokens: 16, ignore_eos: true })
  return (await fetch(`${URL}/v1/jobs`, { method: 'POST', headers, body })).json()
}

/** Return the ids of a job's token events, up to its end. */
const tokenIds = async (job, fetch) => {
  const source = new EventSource(`${URL}${job.links.events}`, { fetch })
  const ids = []
  await new Promise((resolve, reject) => {
    source.addEventListener('token', (event) => ids.push(event.lastEventId))
    source.addEventListener('done', resolve)
    source.addEventListener('error', (error) => (error.code ? reject(new Error(error.message)) : null))
    setTimeout(() => reject(new Error(`no end after ${ids}`)), LIMIT_MS).unref()
  })
  source.close()
  return ids
}

/** Return the response with its connection lost after the first token event. */
const cut = ({ body, url, status, redirected, headers }) => {
  let text = ''
  const lost = new TransformStream({
    transform(part, controller) {
      text += Buffer.from(part).toString('latin1')
      const end = text.indexOf('\n\n', text.indexOf('event: token'))
      if (!text.includes('event: token') || end < 0) return
      controller.enqueue(Buffer.from(text.slice(0, end + 2), 'latin1'))
      controller.terminate()
    },
  })
  return { body: body.pipeThrough(lost), url, status, redirected, headers }
}

feature("a job's stream, from its first event to its last", async () => {
  assert((await tokenIds(await newJob(), withKey)).length > 1)
})

feature('a lost connection: resumed after its last event', async () => {
  const job = await newJob()
  const whole = await tokenIds(job, withKey)
  const resumedAfter = []
  const resumed = await tokenIds(job, async (url, init) => {
    resumedAfter.push(init.headers['Last-Event-ID'])
    const response = await withKey(url, init)
    return resumedAfter.length === 1 ? cut(response) : response
  })
  assert.deepEqual(resumed, whole)
  assert.deepEqual(resumedAfter, [undefined, whole[0]])
})

await main()
