// The page: asks for the study, shows it, and says so when there is none.

import { Refused, setToken, takeToken } from './ask.js'
import { runsSaid, showAnswer } from './answer.js'
import { colorsOf, onTheme, theme } from './colors.js'
import { showCurves, startCurves } from './curves.js'
import { showDetail, startDetail } from './detail.js'
import { documents } from './documents.js'
import { at, set, write } from './dom.js'
import { showRuns, startRuns } from './runs.js'
import { showSizes, startSizes } from './sizes.js'
import { number } from './text.js'
import { showToolbar, startToolbar } from './toolbar.js'
import { startView, view } from './view.js'

const LIVE = 1000 // milliseconds between two questions while something trains,
const STILL = 5000 // while nothing does, and at most where there is no answer,
const UNSEEN = 15_000 // and while nobody looks

let study = null
let heard = null // when the last answer came
let failures = 0
let timer = 0
let asking = false

async function poll() {
  clearTimeout(timer)
  if (asking) return
  asking = true
  const goesOn = await hear()
  asking = false
  if (goesOn && !documents.isFixed) timer = setTimeout(poll, pause())
}

function pause() {
  if (failures) return Math.min(LIVE * failures, STILL)
  if (document.hidden) return UNSEEN
  return study?.live ? LIVE : STILL
}

// Whether to ask again.
async function hear() {
  try {
    const news = await documents.study()
    heard = new Date()
    const wasLost = failures > 0
    failures = 0
    if (news) study = news
    at('ask-token').hidden = true
    if (news || wasLost) show()
    if (!documents.isFixed) set('heard', `As of ${heard.toLocaleTimeString('en-GB')}`)
    return true
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      askForToken()
      return false
    }
    lost(error)
    return true
  }
}

function lost(error) {
  failures += 1
  documents.forget() // so that what comes next is shown, whatever it is
  const isAnswer = error instanceof Refused
  const why = documents.isFixed
    ? error.message
    : isAnswer
      ? `The study cannot be read: ${error.message}.`
      : 'The server does not answer.'
  const remedy = isAnswer
    ? ' Look whether the folder is there, and whether it is one of rightbatch study.'
    : ' Start it again with rightbatch ui DIR.'
  const since =
    heard && study ? ` What is shown was so at ${heard.toLocaleTimeString('en-GB')}.` : ''
  notice(documents.isFixed ? why : `${why}${remedy}${since} Trying again…`)
  state('lost', isAnswer || documents.isFixed ? 'no study' : 'no connection')
}

function notice(text) {
  const place = at('notice')
  place.hidden = !text
  write(place, text)
  document.body.classList.toggle('lost', failures > 0)
}

function state(name, text) {
  at('state').dataset.state = name
  set('state', text)
}

function askForToken() {
  const form = at('ask-token')
  if (!form.hidden) set('token-error', 'That is not the token.')
  form.hidden = false
  at('main').hidden = true
  notice('')
  state('waiting', 'needs a token')
  at('token').focus()
}

// All that is shown, from the study and the view; each part leaves alone what has not changed.
function show() {
  if (!study) return
  const { title, target, runs, live } = study
  notice('')
  set('title', title)
  document.title = `${title} · rightbatch`
  set('target', target ? `target ${target.metric} = ${number(target.value)}` : '')
  set('count', runs.length ? runsSaid(runs) : '')
  state(
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
  at('ask-token').addEventListener('submit', event => {
    event.preventDefault()
    setToken(at('token').value.trim())
    poll()
  })
  // The address keeps the view, so that a place in the page is not named by it.
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
