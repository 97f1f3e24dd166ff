// The page: requests the status every second and shows it, or says why it cannot.

import { ask, Refused, takeToken } from './ask.js'
import { showCapacity, startCapacity } from './capacity.js'
import { BatchChart } from './chart.js'
import {
  askForToken,
  hideTokenForm,
  lastUpdate,
  onToken,
  showNotice,
  showState,
} from './connection.js'
import { openRemove, openView, startDialogs, updateView } from './dialogs.js'
import { at, set } from './dom.js'
import { showFigures, showReasons, showTable } from './figures.js'
import { showSources, startSources } from './sources.js'
import { count, duration, milliseconds } from './text.js'

const INTERVAL = 1000 // milliseconds between two requests
const MAX_INTERVAL = 5000 // while the server does not answer

let chart
let updated = null // when the last answer arrived
let failures = 0
let timer = 0
let isRequesting = false
let acceptsImages = null

async function poll() {
  clearTimeout(timer)
  if (isRequesting) return
  isRequesting = true
  const status = await requestStatus()
  isRequesting = false
  if (status === null) return // until there is a token
  timer = setTimeout(poll, Math.min(INTERVAL * Math.max(failures, 1), MAX_INTERVAL))
  if (status) show(status)
}

// The status; null if a token is required, undefined if there is no answer.
async function requestStatus() {
  try {
    const status = await (await ask('/status')).json()
    acceptsImages ??= await requestPredict()
    updated = new Date()
    failures = 0
    return status
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      askForToken()
      return null
    }
    showLost(error)
    return undefined
  }
}

async function requestPredict() {
  try {
    return (await (await ask('/health')).json()).predict
  } catch (error) {
    if (error instanceof Refused) return false // the server is stopping
    throw error
  }
}

const NOTICES = {
  stopping: 'The server is stopping: it finishes the frames that it has accepted.',
  stopped: 'The server has stopped.',
}

function showLost(error) {
  failures += 1
  const why =
    error instanceof Refused
      ? `The server answers: ${error.message}.`
      : 'The server does not answer.'
  showNotice(`${why}${lastUpdate(updated)} Trying again…`, true)
  showState('lost', 'no connection')
}

function show(status) {
  hideTokenForm()
  at('main').hidden = false
  showNotice(NOTICES[status.state] ?? '')
  set('model', status.model)
  document.title = `${status.model} · rightbatch`
  showState(status.state, status.state)
  set('target', `target ${milliseconds(status.latency_target_ms)}`)
  set('since', `up ${duration(Date.now() / 1000 - status.since)}`)
  showFigures(status)
  for (const id of ['legend', 'table', 'batch']) at(id).hidden = !status.batches.length
  chart.show(status.batches, status.latency_target_ms, status.largest_batch)
  showTable(status.batches)
  showReasons(status.batches)
  showCapacity(status.calibration)
  showSources(status, acceptsImages)
  updateView(status)
  const { lines, left_out: leftOut, error } = status.written
  const leftOutText = leftOut ? `, ${count(leftOut)} not written` : ''
  set('written', `${count(lines)} results written${leftOutText}${error ? `: ${error}` : ''}`)
  at('written').classList.toggle('bad', Boolean(error || leftOut))
}

takeToken()
chart = new BatchChart(at('chart'), text => set('batch', text))
startCapacity()
startSources({ view: openView, remove: openRemove })
startDialogs(poll)
onToken(poll)
at('table').addEventListener('toggle', poll)
document.addEventListener('visibilitychange', () => document.hidden || poll())
poll()
