// Dialogs: add a source, remove a source, view a source.

import { ask } from './ask.js'
import { at, describe, set } from './dom.js'
import { release, show } from './snapshots.js'
import { causes, count } from './text.js'

const INTERVAL = 500 // milliseconds between two frames of the viewed source

let changed = () => {}
let removing = null
let viewing = null
let nextLook = 0

export function startDialogs(onChange) {
  changed = onChange
  for (const dialog of document.querySelectorAll('dialog')) {
    for (const button of dialog.querySelectorAll('[data-close]'))
      button.addEventListener('click', () => dialog.close())
    dialog.addEventListener('pointerdown', event => isBeside(dialog, event) && dialog.close())
  }
  at('add').addEventListener('click', openAdd)
  at('add-form').addEventListener('submit', event => submit(event, 'add', add))
  at('remove-form').addEventListener('submit', event => submit(event, 'remove', remove))
  at('view-dialog').addEventListener('close', () => {
    viewing = null
    clearTimeout(nextLook)
    release(at('view-image'))
  })
}

function isBeside(dialog, { target, clientX, clientY }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect()
  const isWithin = clientX >= left && clientX <= right && clientY >= top && clientY <= bottom
  return target === dialog && !isWithin
}

function openAdd() {
  at('add-form').reset()
  set('add-error', '')
  at('add-dialog').showModal()
}

export function openRemove(name) {
  removing = name
  set('remove-name', name)
  set('remove-error', '')
  at('remove-dialog').showModal()
}

export function openView(name) {
  viewing = name
  set('view-name', name)
  set('view-error', '')
  at('view-image').alt = `The newest frame of ${name}`
  at('view-dialog').showModal()
  look(name)
  changed()
}

async function look(name) {
  try {
    await show(at('view-image'), name)
    set('view-error', '')
  } catch (error) {
    set('view-error', viewing === name ? error.message : '')
  }
  if (viewing === name) nextLook = setTimeout(() => look(name), INTERVAL)
  else release(at('view-image'))
}

export function updateView(status) {
  if (viewing === null) return
  const source = status.sources.find(one => one.name === viewing)
  if (!source) return at('view-dialog').close()
  const dropped = causes(source.dropped).map(one => one.text)
  describe(at('view-facts'), [
    ['URL', source.url],
    ['Error', source.error],
    ['Size', source.size?.join(' × ')],
    ['Frames', `${count(source.frames)}, ${count(source.broken)} damaged`],
    ['Reconnects', source.live ? count(source.reconnects) : null],
    ['Weight', source.weight],
    ['Served', `${count(source.served)}, ${count(source.in_time)} in time`],
    ['Dropped', dropped.join(', ') || 'none'],
  ])
}

async function submit(event, which, act) {
  event.preventDefault()
  const button = event.submitter ?? event.target.querySelector('.buttons button:last-child')
  button.disabled = true
  set(`${which}-error`, '')
  try {
    set('said', await act(event.target))
    at(`${which}-dialog`).close()
  } catch (error) {
    set(`${which}-error`, error.message)
  } finally {
    button.disabled = false
  }
  changed()
}

async function add(form) {
  const { source, name, contract, weight } = Object.fromEntries(new FormData(form))
  const json = { source: source.trim() }
  if (name.trim()) json.name = name.trim()
  if (contract) json.contract = contract
  if (weight) json.weight = Number(weight)
  const added = await (await ask('/sources', { method: 'POST', json, seconds: 30 })).json()
  return `Added ${added.name}`
}

async function remove() {
  await ask(`/sources/${encodeURIComponent(removing)}`, { method: 'DELETE', seconds: 30 })
  return `Removed ${removing}`
}
