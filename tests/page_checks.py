"""Accessibility checks that run in a page: names of controls, and contrast of texts."""

# Whether a control has a name that a screen reader can read out.
HAS_NAME = """element => Boolean(
    element.getAttribute('aria-label') || element.textContent.trim() ||
    [...(element.labels ?? [])].some(label => label.textContent.trim()))"""

# The texts whose contrast is below 4.5, WCAG 2.2's minimum (AA), with their contrast.
LOW_CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
    const parts = color => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1)
        return [...canvas.getImageData(0, 0, 1, 1).data]
    }
    const light = rgb => {
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
        const [r, g, b] = rgb.map(v => linear(v / 255))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const ground = element => {
        for (; element; element = element.parentElement) {
            const color = parts(getComputedStyle(element).backgroundColor)
            if (color[3] === 255) return color.slice(0, 3)
        }
        return [255, 255, 255]
    }
    const bad = []
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement
        if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue
        if (element.closest('.hidden, .skip, script, noscript')) continue
        const style = getComputedStyle(element)
        const ink = parts(element.closest('svg') ? style.fill : style.color).slice(0, 3)
        const [low, high] = [light(ink), light(ground(element))].sort((a, b) => a - b)
        const contrast = (high + 0.05) / (low + 0.05)
        if (contrast < 4.5) bad.push([walker.currentNode.textContent.trim(), contrast])
    }
    return bad
}"""
