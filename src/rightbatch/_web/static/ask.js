// Requests to the server, with the token if there is one. The token arrives once, in the address,
// is removed from it, and is kept for this tab only.

const KEY = 'rightbatch-token'

// The server answered with an error status.
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
  sessionStorage.setItem(KEY, token)
  address.searchParams.delete('token')
  history.replaceState(null, '', address)
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token)
}

export function hasToken() {
  return Boolean(sessionStorage.getItem(KEY))
}

// The response; with `tag` it may be 304: the content with that tag is still current.
export async function ask(path, { method = 'GET', json, tag, seconds = 10 } = {}) {
  const headers = {}
  const token = sessionStorage.getItem(KEY)
  // A header contains Latin-1 only; the server reads these bytes as UTF-8.
  if (token) headers.Authorization = `Bearer ${utf8(token)}`
  if (json !== undefined) headers['Content-Type'] = 'application/json'
  if (tag) headers['If-None-Match'] = tag
  const response = await fetch(path, {
    method,
    headers,
    body: json === undefined ? undefined : JSON.stringify(json),
    cache: 'no-store',
    signal: AbortSignal.timeout(1000 * seconds),
  })
  if (response.ok || response.status === 304) return response
  let text = response.statusText
  try {
    text = (await response.json()).error ?? text
  } catch {
    // not from the server itself, for example from a proxy
  }
  throw new Refused(response.status, text)
}

function utf8(text) {
  return String.fromCharCode(...new TextEncoder().encode(text))
}
