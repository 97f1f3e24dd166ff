// The page: requests the study and shows it, or says why it cannot.

import { runsSaid, showAnswer } from './answer.js'
import { Refused, takeToken } from './ask.js'
import { colorsOf, onTheme, theme } from './colors.js'
import {
  askForToken,
  hideTokenForm,
  lastUpdate,
  onToken,
  showNotice,
  showState,
} from './connection.js'
import { showCurves, startCurves } from './curves.js'
import { showDetail, startDetail } from './detail.js'
import { documents } from './documents.js'
import { at, set } from './dom.js'
import { showRuns, startRuns } from './runs.js'
import { showSizes, startSizes } from './sizes.js'
import { number } from './text.js'
import { showToolbar, startToolbar } from './toolbar.js'
import { startView, view } from './view.js'

// Milliseconds between two requests:
const LIVE = 1000 // while a run trains
const STILL = 5000 // while none does, and at most while the server does not answer
const UNSEEN = 15_000 // while the page is hidden

let study = null
let updated = null // when the last answer arrived
let failures = 0
let timer = 0
let isRequesting = false

async function poll() {
  clearTimeout(timer)
  if (isRequesting) return
  isRequesting = true
  const isAllowed = await update()
  isRequesting = false
  if (isAllowed && !documents.isFixed) timer = setTimeout(poll, pause())
}

function pause() {
  if (failures) return Math.min(LIVE * failures, STILL)
  if (document.hidden) return UNSEEN
  return study?.live ? LIVE : STILL
}

// False if a token is required.
async function update() {
  try {
    const changed = await documents.study()
    updated = new Date()
    const wasLost = failures > 0
    failures = 0
    if (changed) study = changed
    hideTokenForm()
    if (changed || wasLost) show()
    if (!documents.isFixed) set('updated', `As of ${updated.toLocaleTimeString('en-GB')}`)
    return true
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      askForToken()
      return false
    }
    showLost(error)
    return true
  }
}

function showLost(error) {
  failures += 1
  documents.forget() // so that the next answer is shown, whatever it is
  const isAnswer = error instanceof Refused
  if (documents.isFixed) showNotice(error.message, true)
  else {
    const text = isAnswer
      ? `The study cannot be read: ${error.message}. ` +
        'Check that the folder exists and was written by rightbatch study.'
      : 'The server does not answer. Restart it with rightbatch ui DIR.'
    showNotice(`${text}${lastUpdate(study ? updated : null)} Trying again…`, true)
  }
  showState('lost', isAnswer || documents.isFixed ? 'no study' : 'no connection')
}

// Draws the study in the current view; each part changes only what differs.
function show() {
  if (!study) return
  const { title, target, runs, live } = study
  showNotice('')
  set('title', title)
  document.title = `${title} · rightbatch`
  set('target', target ? `target ${target.metric} = ${number(target.value)}` : '')
  set('count', runs.length ? runsSaid(runs) : '')
  showState(
    ...(live
      ? ['running', 'training']
      : documents.isFixed
        ? ['still', 'report']
        : ['still', 'not training']),
  )
  at('empty').hidden = runs.length > 0
  at('main').hidden = !runs.length
  if (!runs.length) return
  const now = nowOf()
  showAnswer(now)
  showToolbar(now)
  showRuns(now)
  showSizes(now)
  showCurves(now)
  showDetail(now)
}

function nowOf() {
  const colors = theme()
  return {
    study,
    view,
    theme: colors,
    colors: colorsOf(study, colors),
    metric: study.metrics.includes(view.metric) ? view.metric : (study.metrics[0] ?? ''),
  }
}

function startTop() {
  onToken(poll)
  // The fragment of the address holds the view, so it cannot name a place in the page.
  document.querySelector('.skip').addEventListener('click', event => {
    event.preventDefault()
    at('runs').focus()
    at('runs').scrollIntoView()
  })
  document.addEventListener('visibilitychange', () => document.hidden || poll())
}

takeToken()
startTop()
startToolbar()
startCurves()
startSizes()
startRuns()
startDetail()
startView(show)
onTheme(show)
poll()
