// promptfoo: an evaluation of one prompt.
import assert from 'node:assert'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { KEY, LIMIT_MS, MODEL, URL, feature, main } from './features.mjs'

feature('an evaluation', () => {
  const folder = mkdtempSync(join(tmpdir(), 'promptfoo-'))
  const config = { apiBaseUrl: `${URL}/v1`, apiKey: KEY, max_tokens: 16 }
  writeFileSync(join(folder, 'promptfooconfig.json'), JSON.stringify({
    prompts: ['Say {{word}}'],
    providers: [{ id: `openai:chat:${MODEL}`, config }],
    tests: [{ vars: { word: 'hi' }, assert: [{ type: 'javascript', value: 'output.length > 0' }] }],
  }))
  const run = spawnSync('node', [join(import.meta.dirname, 'node_modules/promptfoo/dist/src/main.js'), 'eval',
    '-c', 'promptfooconfig.json', '-o', 'out.json', '--no-cache', '--no-progress-bar'], {
    cwd: folder, encoding: 'utf8', timeout: LIMIT_MS,
    env: { ...process.env, PROMPTFOO_DISABLE_TELEMETRY: '1', PROMPTFOO_DISABLE_UPDATE: '1', PROMPTFOO_CONFIG_DIR: folder },
  })
  const { results } = JSON.parse(readFileSync(join(folder, 'out.json')))
  assert.equal(results.stats.successes, 1, run.stderr.slice(-200))
})

await main()
