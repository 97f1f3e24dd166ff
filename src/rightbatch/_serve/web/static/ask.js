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

export function hasToken() {
  return Boolean(sessionStorage.getItem(KEPT))
}

export async function ask(path, { method = 'GET', json, seconds = 10 } = {}) {
  const headers = {}
  const token = sessionStorage.getItem(KEPT)
  // A header holds Latin-1 only; the server reads these bytes as UTF-8.
  if (token) headers.Authorization = `Bearer ${bytes(token)}`
  if (json !== undefined) headers['Content-Type'] = 'application/json'
  const response = await fetch(path, {
    method,
    headers,
    body: json === undefined ? undefined : JSON.stringify(json),
    cache: 'no-store',
    signal: AbortSignal.timeout(1000 * seconds),
  })
  if (response.ok) return response
  let text = response.statusText
  try {
    text = (await response.json()).error ?? text
  } catch {
    // not from the server itself, then: what the status says is all there is
  }
  throw new Refused(response.status, text)
}

function bytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text))
}

export function snapshotPath(name) {
  return `/snapshot/${encodeURIComponent(name)}`
}

export function sourcePath(name) {
  return `/sources/${encodeURIComponent(name)}`
}
