// What both pages show about their connection: the state at the top, a notice, and the form that
// asks for the token.

import { setToken } from './ask.js'
import { at, set, write } from './dom.js'

export function showState(name, text) {
  at('state').dataset.state = name
  set('state', text)
}

// With `isLost` the page is dimmed, since what it shows is not current.
export function showNotice(text, isLost = false) {
  const place = at('notice')
  place.hidden = !text
  write(place, text)
  document.body.classList.toggle('lost', isLost)
}

export function lastUpdate(date) {
  return date ? ` Last update at ${date.toLocaleTimeString('en-GB')}.` : ''
}

export function onToken(retry) {
  at('ask-token').addEventListener('submit', event => {
    event.preventDefault()
    setToken(at('token').value.trim())
    retry()
  })
}

export function askForToken() {
  const form = at('ask-token')
  if (!form.hidden) set('token-error', 'Wrong token.')
  form.hidden = false
  at('main').hidden = true
  showNotice('')
  showState('waiting', 'token required')
  at('token').focus()
}

export function hideTokenForm() {
  at('ask-token').hidden = true
}
