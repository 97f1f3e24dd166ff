// The page: asks for the status every second and shows it; says so when there is none.

import { ask, Refused, setToken, takeToken } from './ask.js'
import { showCapacity, startCapacity } from './capacity.js'
import { BatchChart } from './chart.js'
import { openRemove, openView, startDialogs, updateView } from './dialogs.js'
import { at, set, write } from './dom.js'
import { showFigures, showReasons, showTable } from './figures.js'
import { showSources, startSources } from './sources.js'
import { count, duration, milliseconds } from './text.js'

const EVERY = 1000 // milliseconds
const SLOWEST = 5000 // between two attempts, where there is no answer

let chart
let heard = null // when the last answer came
let failures = 0
let timer = 0
let asking = false
let takesImages = null

async function poll() {
  clearTimeout(timer)
  if (asking) return
  asking = true
  const status = await asked()
  asking = false
  if (status === null) return // until there is a token
  timer = setTimeout(poll, Math.min(EVERY * Math.max(failures, 1), SLOWEST))
  if (status) show(status)
}

// The status; null where a token is needed first, undefined where there is no answer.
async function asked() {
  try {
    const status = await (await ask('/status')).json()
    takesImages ??= await predicts()
    heard = new Date()
    failures = 0
    return status
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      askForToken()
      return null
    }
    lost(error)
    return undefined
  }
}

async function predicts() {
  try {
    return (await (await ask('/health')).json()).predict
  } catch (error) {
    if (error instanceof Refused) return false // it is stopping
    throw error
  }
}

const ENDS = {
  stopping: 'The server is stopping: it finishes what it accepted.',
  stopped: 'The server has stopped.',
}

function lost(error) {
  failures += 1
  const why =
    error instanceof Refused
      ? `The server answers: ${error.message}.`
      : 'The server does not answer.'
  const since = heard ? ` What is shown was so at ${heard.toLocaleTimeString('en-GB')}.` : ''
  notice(`${why}${since} Trying again…`)
  at('state').dataset.state = 'lost'
  set('state', 'no connection')
}

function notice(text) {
  const place = at('notice')
  place.hidden = !text
  write(place, text)
  document.body.classList.toggle('lost', failures > 0)
}

function askForToken() {
  const form = at('ask-token')
  if (!form.hidden) set('token-error', 'That is not the token.')
  form.hidden = false
  at('main').hidden = true
  notice('')
  at('state').dataset.state = 'waiting'
  set('state', 'needs a token')
  at('token').focus()
}

function show(status) {
  at('ask-token').hidden = true
  at('main').hidden = false
  notice(ENDS[status.state] ?? '')
  set('model', status.model)
  document.title = `${status.model} · rightbatch`
  set('state', status.state)
  at('state').dataset.state = status.state
  set('target', `target ${milliseconds(status.latency_target_ms)}`)
  set('since', `up ${duration(Date.now() / 1000 - status.since)}`)
  showFigures(status)
  for (const id of ['legend', 'table', 'batch']) at(id).hidden = !status.batches.length
  chart.show(status.batches, status.latency_target_ms, status.largest_batch)
  showTable(status.batches)
  showReasons(status.batches)
  showCapacity(status.calibration)
  showSources(status, takesImages)
  updateView(status)
  const { lines, left_out: leftOut, error } = status.written
  const leftOutText = leftOut ? `, ${count(leftOut)} left out` : ''
  set('written', `${count(lines)} results written${leftOutText}${error ? `: ${error}` : ''}`)
  at('written').classList.toggle('bad', Boolean(error || leftOut))
}

takeToken()
chart = new BatchChart(at('chart'), text => set('batch', text))
startCapacity()
startSources({ view: openView, remove: openRemove })
startDialogs(poll)
at('ask-token').addEventListener('submit', event => {
  event.preventDefault()
  setToken(at('token').value.trim())
  poll()
})
at('table').addEventListener('toggle', poll)
document.addEventListener('visibilitychange', () => document.hidden || poll())
poll()
