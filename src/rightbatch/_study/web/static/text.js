// Numbers, times and words as text.

const NONE = '–'
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const four = new Intl.NumberFormat('en', { maximumSignificantDigits: 4 })
const three = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 })

const STATUSES = {
  running: 'running',
  finished: 'finished',
  out_of_memory: 'out of memory',
  diverged: 'diverged',
  failed: 'failed',
  stopped: 'stopped',
}

export function isNumber(value) {
  return typeof value === 'number' && Number.isFinite(value)
}

export function count(value) {
  return isNumber(value) ? whole.format(value) : NONE
}

export function number(value) {
  if (!isNumber(value)) return NONE
  const size = Math.abs(value)
  if (size >= 1000) return whole.format(value)
  return size && size < 0.001 ? value.toExponential(2) : four.format(value)
}

export function rough(value) {
  if (!isNumber(value)) return NONE
  return Math.abs(value) >= 1000 ? whole.format(Number(value.toPrecision(3))) : three.format(value)
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB']

export function unitOfBytes(most) {
  const power = most >= 1 ? Math.min(Math.floor(Math.log2(most) / 10), UNITS.length - 1) : 0
  return { unit: UNITS[power], bytes: 1024 ** power }
}

export function bytes(value) {
  if (!isNumber(value)) return NONE
  const { unit, bytes: one } = unitOfBytes(value)
  return `${three.format(value / one)} ${unit}`
}

export function seconds(value) {
  if (!isNumber(value)) return NONE
  if (value && value < 1) return `${three.format(value * 1000)} ms`
  if (value < 120) return `${three.format(value)} s`
  const minutes = Math.floor(value / 60)
  if (minutes < 60) return `${minutes} min ${whole.format(Math.floor(value % 60))} s`
  const hours = Math.floor(minutes / 60)
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, '0')} min`
  return `${Math.floor(hours / 24)} days ${hours % 24} h`
}

export function along(axis, value) {
  if (axis === 'seconds') return seconds(value)
  return `${axis === 'epochs' ? rough(value) : count(value)} ${axis}`
}

export function moment(at) {
  return at ? new Date(1000 * at).toLocaleString('sv-SE') : ''
}

export function status(name) {
  return STATUSES[name] ?? name
}

export function plural(number, word) {
  return `${whole.format(number)} ${word}${number === 1 ? '' : 's'}`
}

// {middle, low, high} as "12.3 s (11.9 s to 13 s)", or as one value if they are equal.
export function range(band, format = number) {
  if (!band || !isNumber(band.middle)) return NONE
  const { middle, low, high } = band
  if (low === high || !isNumber(low) || !isNumber(high)) return format(middle)
  return `${format(middle)} (${format(low)} to ${format(high)})`
}

export function joined(words) {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`
}

// An estimated batch size.
export function about(size) {
  return size < 10 ? rough(size) : rough(Math.round(size))
}

// An interval of estimated batch sizes, possibly unbounded.
export function interval(low, high) {
  if (isNumber(low) && isNumber(high)) return `${about(low)} to ${about(high)}`
  if (isNumber(low)) return `above ${about(low)}`
  return isNumber(high) ? `below ${about(high)}` : ''
}

// Text as a sentence.
export function sentence(text) {
  if (!text) return ''
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.?!…]$/.test(text) ? '' : '.'}`
}

// `null` is the size of runs without a known batch size.
export function sizeName(size) {
  return size === null ? 'no batch size' : `batch ${size}`
}

// Plotly interprets text as a subset of HTML.
export function drawn(text) {
  return String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}
