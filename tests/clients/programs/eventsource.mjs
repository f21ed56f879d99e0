// EventSource, as browsers have it: it resumes a job's stream by the id of its last event.
import assert from 'node:assert'
import { EventSource } from 'eventsource'
import { KEY, MODEL, URL, feature, main } from './features.mjs'

const headers = { authorization: `Bearer ${KEY}`, 'content-type': 'application/json' }

feature("a job's stream, from its first event to its last", async () => {
  const body = JSON.stringify({ model: MODEL, messages: [{ role: 'user', content: 'Say hi' }], max_tokens: 16 })
  const job = await (await fetch(`${URL}/v1/jobs`, { method: 'POST', headers, body })).json()
  const withKey = (url, init) => fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${KEY}` } })
  const source = new EventSource(`${URL}${job.links.events}`, { fetch: withKey })
  const ids = []
  await new Promise((resolve, reject) => {
    source.addEventListener('token', (event) => ids.push(event.lastEventId))
    source.addEventListener('done', resolve)
    source.addEventListener('error', (error) => (error.code ? reject(new Error(error.message)) : null))
    setTimeout(() => reject(new Error(`no end after ${ids}`)), 60_000)
  })
  source.close()
  assert(ids.length > 1)
})

await main()
