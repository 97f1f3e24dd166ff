// The newest frames of the sources that can be seen on the screen, two at a time.

import { ask, Refused, snapshotPath } from './ask.js'

const EVERY = 2000 // milliseconds between two looks at one source
const AT_ONCE = 2

const wanted = new Map() // image -> what is known of it
let busy = 0

const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    for (const one of wanted.values()) {
      if (one.frame === entry.target) one.seen = entry.isIntersecting
    }
  }
})

// `frame` is what has a place on the screen even where there is no picture yet.
export function keep(image, frame, name) {
  wanted.set(image, { name, frame, frames: 0, seen: false, at: -EVERY, shown: 0, busy: false })
  watcher.observe(frame)
}

export function forget(image) {
  watcher.unobserve(wanted.get(image).frame)
  wanted.delete(image)
  release(image)
}

export function hasFrames(image, frames) {
  const known = wanted.get(image)
  if (known) known.frames = frames
}

export async function refresh() {
  if (document.hidden) return
  const now = performance.now()
  const due = [...wanted.entries()]
    .filter(([, one]) => one.seen && !one.busy && one.frames !== one.shown && now - one.at >= EVERY)
    .sort((one, other) => one[1].at - other[1].at)
  for (const [image, one] of due.slice(0, AT_ONCE - busy)) look(image, one)
}

async function look(image, one) {
  one.busy = true
  busy += 1
  const { frames } = one
  try {
    await show(image, one.name)
    one.shown = frames
  } catch {
    // it has gone, or has no frame yet: what is shown stays
  } finally {
    one.at = performance.now()
    one.busy = false
    busy -= 1
    if (!wanted.has(image)) release(image)
    else refresh()
  }
}

// Images cannot bear a token: they are fetched, and shown from memory.
export async function show(image, name) {
  const blob = await (await ask(snapshotPath(name), { seconds: 5 })).blob()
  if (blob.type !== 'image/jpeg') throw new Refused(415, 'this is no picture')
  const before = image.src
  image.src = URL.createObjectURL(blob)
  image.hidden = false
  if (before) URL.revokeObjectURL(before)
}

export function release(image) {
  if (image.src) URL.revokeObjectURL(image.src)
  image.removeAttribute('src')
  image.hidden = true
}
