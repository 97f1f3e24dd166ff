// Requests to the server, with the token where there is one. The token comes once, in the address,
// is taken out of it, and is kept for this tab only.

const KEPT = 'rightbatch-token'

export class Refused extends Error {
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

export function takeToken() {
  const address = new URL(location.href)
  const token = address.searchParams.get('token')
  if (token === null) return
  sessionStorage.setItem(KEPT, token)
  address.searchParams.delete('token')
  history.replaceState(null, '', address)
}

export function setToken(token) {
  sessionStorage.setItem(KEPT, token)
}

// The answer {tag, content}, or null where it is still the one with `tag`.
export async function ask(path, tag = null) {
  const headers = {}
  const token = sessionStorage.getItem(KEPT)
  // A header holds Latin-1 only; the server reads these bytes as UTF-8.
  if (token) headers.Authorization = `Bearer ${latin(token)}`
  if (tag) headers['If-None-Match'] = tag
  const response = await fetch(path, {
    headers,
    cache: 'no-store',
    signal: AbortSignal.timeout(30_000),
  })
  if (response.status === 304) return null
  if (response.ok) return { tag: response.headers.get('ETag'), content: await response.json() }
  let text = response.statusText
  try {
    text = (await response.json()).error ?? text
  } catch {
    // not from the server itself, then: what the status says is all there is
  }
  throw new Refused(response.status, text)
}

function latin(text) {
  return String.fromCharCode(...new TextEncoder().encode(text))
}
