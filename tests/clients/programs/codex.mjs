// OpenAI's Codex CLI, with the server as its provider.
import assert from 'node:assert'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { KEY, LIMIT_MS, MODEL, URL, feature, main } from './features.mjs'

const AT_CONTEXT_END = 'Incomplete response returned, reason: max_output_tokens' // it asks without a limit

feature('one prompt, by responses', () => {
  const folder = mkdtempSync(join(tmpdir(), 'codex-'))
  writeFileSync(join(folder, 'config.toml'), `model = "${MODEL}"
model_provider = "headrace"
[model_providers.headrace]
name = "headrace"
base_url = "${URL}/v1"
env_key = "HEADRACE_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
`)
  const words = ['exec', '--skip-git-repo-check', '--sandbox', 'read-only', '-o', 'last.txt', 'Say hi']
  const run = spawnSync(join(import.meta.dirname, 'node_modules/.bin/codex'), words, {
    cwd: folder, encoding: 'utf8', timeout: LIMIT_MS, input: '',
    env: { ...process.env, CODEX_HOME: folder, HEADRACE_KEY: KEY },
  })
  if (run.stderr.includes(AT_CONTEXT_END)) return 'a model of 135M parameters did not end its answer before its context'
  assert.equal(run.status, 0, run.stderr.slice(-200))
  assert(readFileSync(join(folder, 'last.txt'), 'utf8'))
  return 'what it answers is up to a model of 135M parameters'
})

await main()
