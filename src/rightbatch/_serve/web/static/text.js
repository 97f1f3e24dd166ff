// Numbers, times and drop causes as text.

const CAUSES = {
  late: ['late', 'would have been late in the batch that started'],
  replaced: ['replaced', 'a newer frame replaced it'],
  full: ['full', 'its queue was full'],
  refused: ['refused', 'predicted to be late when it arrived'],
  failed: ['failed', 'the model raised an error'],
  closing: ['closing', 'the source or the server was closing'],
}

// Not errors: a camera faster than the model replaces frames, and closing drops them.
const EXPECTED = new Set(['replaced', 'closing'])

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1, minimumFractionDigits: 1 })

export function count(value) {
  return whole.format(value)
}

export function figure(value) {
  return Math.abs(value) < 99.95 ? tenths.format(value) : whole.format(value)
}

export function milliseconds(value) {
  if (value === null || value === undefined) return '–'
  return value >= 10000
    ? `${tenths.format(value / 1000)} s`
    : `${Math.abs(value) < 9.95 ? tenths.format(value) : whole.format(value)} ms`
}

// Rounds down: 99.96 % must not be shown as 100 %.
export function share(part, all) {
  if (!all) return '–'
  const percent = (100 * part) / all
  if (part === all) return '100 %'
  return `${tenths.format(Math.min(Math.floor(10 * percent) / 10, 99.9))} %`
}

export function duration(seconds) {
  if (seconds < 60) return `${whole.format(Math.max(seconds, 0))} s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes} min`
  const hours = Math.floor(minutes / 60)
  return hours < 48
    ? `${hours} h ${String(minutes % 60).padStart(2, '0')} min`
    : `${Math.floor(hours / 24)} days`
}

export function clock(at) {
  return new Date(1000 * at).toLocaleTimeString('en-GB')
}

export function causes(dropped) {
  return Object.entries(dropped)
    .filter(([, number]) => number > 0)
    .sort((one, other) => other[1] - one[1])
    .map(([cause, number]) => {
      const [word, meaning] = CAUSES[cause] ?? [cause, '']
      return { text: `${count(number)} ${word}`, meaning, expected: EXPECTED.has(cause) }
    })
}

export function sum(values) {
  return values.reduce((total, value) => total + value, 0)
}

export function median(values) {
  const sorted = [...values].sort((one, other) => one - other)
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : null
}

export function capitalized(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : text
}
