// Elements. Text is always set as text: names, reasons and sentences come from outside.

export function at(id) {
  return document.getElementById(id)
}

export function set(id, text) {
  write(at(id), text)
}

// Leaving alone what has not changed keeps a selection in it.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value)
  }
  element.append(...children)
  return element
}

// A number with its unit set smaller.
export function measured(text) {
  const [number, ...unit] = text.split(' ')
  return unit.length ? [number, make('span', { class: 'unit' }, ` ${unit.join(' ')}`)] : [text]
}

// The elements of a list, each kept as long as its key is there: what has the focus keeps it.
export class Keyed {
  constructor(place, build) {
    this.place = place
    this.build = build
    this.kept = new Map()
  }

  show(items, keyOf, fill) {
    const keys = new Set(items.map(keyOf))
    for (const [key, element] of this.kept) {
      if (keys.has(key)) continue
      element.remove()
      this.kept.delete(key)
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

// Describing terms: [[label, text], ...], without those that have no text.
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
