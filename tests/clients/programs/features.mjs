// Report of a client program: one line of JSON for each feature that it tried.
export const { HEADRACE_URL: URL, HEADRACE_MODEL: MODEL, HEADRACE_EMBEDDER: EMBEDDER, HEADRACE_KEY: KEY } = process.env
export const LIMIT_MS = 1000 * process.env.HEADRACE_FEATURE_LIMIT_S // guards against a hang
const features = []

/** Add a function to the features to try. It throws if the feature fails; a text that it returns is a remark. */
export const feature = (name, run) => features.push([name, run])

export const main = async () => {
  for (const [feature, run] of features) {
    try {
      const remark = (await run()) ?? ''
      console.log(JSON.stringify({ feature, works: true, remark }))
    } catch (error) {
      console.error(error)
      console.log(JSON.stringify({ feature, works: false, remark: String(error).split('\n')[0].slice(0, 200) }))
    }
  }
}
