// Loads the newest frames of the sources that are visible, two at a time.

import { ask, Refused } from './ask.js'

const INTERVAL = 2000 // milliseconds between two frames of one source
const CONCURRENT = 2

const wanted = new Map() // image -> its state
let busy = 0

const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    for (const one of wanted.values()) {
      if (one.frame === entry.target) one.seen = entry.isIntersecting
    }
  }
})

// `frame` is the element whose visibility counts; the image is hidden until it has loaded.
export function keep(image, frame, name) {
  wanted.set(image, { name, frame, frames: 0, seen: false, at: -INTERVAL, shown: 0, busy: false })
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
    .filter(([, one]) => one.seen && !one.busy && one.frames !== one.shown && now - one.at >= INTERVAL)
    .sort((one, other) => one[1].at - other[1].at)
  for (const [image, one] of due.slice(0, CONCURRENT - busy)) look(image, one)
}

async function look(image, one) {
  one.busy = true
  busy += 1
  const { frames } = one
  try {
    await show(image, one.name)
    one.shown = frames
  } catch {
    // removed, or no frame yet: keep the current image
  } finally {
    one.at = performance.now()
    one.busy = false
    busy -= 1
    if (!wanted.has(image)) release(image)
    else refresh()
  }
}

// An <img> cannot send a token: fetch the image and show it from memory.
export async function show(image, name) {
  const blob = await (await ask(`/snapshot/${encodeURIComponent(name)}`, { seconds: 5 })).blob()
  if (blob.type !== 'image/jpeg') throw new Refused(415, 'the answer is not a JPEG')
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
