// Elements. Text is always set as text, never as HTML: names and errors come from outside.

const SVG = 'http://www.w3.org/2000/svg'

export function at(id) {
  return document.getElementById(id)
}

export function set(id, text) {
  write(at(id), text)
}

// Unchanged text is left alone, which keeps a selection in it.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text
}

export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children)
}

export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children)
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value)
  }
  element.append(...children)
  return element
}

// The nodes of a text like "12.3 ms", with the unit in smaller type.
export function measured(text) {
  const [number, ...unit] = text.split(' ')
  return unit.length ? [number, make('span', { class: 'unit' }, ` ${unit.join(' ')}`)] : [text]
}

export function measure(element, text) {
  if (element.textContent !== text) element.replaceChildren(...measured(text))
}

// The elements of a list, one per key, changed in place: a focused element keeps the focus.
export class Keyed {
  constructor(place, build, removed = () => {}) {
    this.place = place
    this.build = build
    this.removed = removed
    this.kept = new Map()
  }

  show(items, keyOf, fill) {
    const keys = new Set(items.map(keyOf))
    for (const [key, element] of this.kept) {
      if (keys.has(key)) continue
      element.remove()
      this.kept.delete(key)
      this.removed(element)
    }
    let next = this.place.firstElementChild
    for (const item of items) {
      const key = keyOf(item)
      let element = this.kept.get(key)
      if (!element) this.kept.set(key, (element = this.build(item)))
      if (element === next) next = next.nextElementSibling
      else this.place.insertBefore(element, next)
      fill(element, item)
    }
  }
}

// A description list from [[label, text], ...], without pairs whose text is empty.
export function describe(list, pairs) {
  const shown = pairs.filter(([, text]) => text !== '' && text !== null && text !== undefined)
  const text = JSON.stringify(shown)
  if (list.dataset.text === text) return shown.length
  list.dataset.text = text
  list.replaceChildren(
    ...shown.map(([label, value]) =>
      make('div', {}, make('dt', {}, label), make('dd', {}, String(value))),
    ),
  )
  return shown.length
}
