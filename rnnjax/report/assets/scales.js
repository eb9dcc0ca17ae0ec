// Colours of values: a diverging scale for units, one of rising darkness for surprise; ink that is read on each.

const LEVELS = 41;

// Blue and vermilion or sky blue and orange (Okabe and Ito, 2008); the middle is the ground of the page.
const SCALES = {
  light: { d: shared.diverging, s: shared.sequential },
  dark: { d: [[86, 180, 233], [30, 33, 38], [255, 158, 74]], s: [[30, 33, 38], [76, 50, 92], [139, 88, 150], [207, 143, 185], [250, 221, 240]] },
};

function mix(stops, share) {
  const place = Math.min(0.999999, Math.max(0, share)) * (stops.length - 1);
  const below = Math.floor(place);
  return stops[below].map((value, k) => Math.round(value + (place - below) * (stops[below + 1][k] - value)));
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Black or white, whichever has the higher contrast: at least 4.58 on any ground. */
const ink = (rgb) => ((luminance(rgb) + 0.05) ** 2 > 1.05 * 0.05 ? "#000" : "#fff");

function addScaleStyles() {
  const rules = [];
  for (const [scheme, scales] of Object.entries(SCALES)) {
    for (const [name, stops] of Object.entries(scales)) {
      for (let k = 0; k < LEVELS; k++) {
        const rgb = mix(stops, k / (LEVELS - 1));
        rules.push(`[data-scheme="${scheme}"] .${name}${k}{background:rgb(${rgb});color:${ink(rgb)}}`);
      }
    }
  }
  document.head.append(make("style", {}, rules.join("\n")));
}

/** The class of a value on the diverging scale, -1 to 1; what lies beyond has the outermost colour. */
const diverging = (share) => `d${Math.round((Math.min(1, Math.max(-1, share)) + 1) * ((LEVELS - 1) / 2))}`;
const sequential = (share) => `s${Math.round(Math.min(1, Math.max(0, share)) * (LEVELS - 1))}`;

function quantile(values, share) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

/** A ramp with its numbers. */
function legend(kind, texts, about) {
  const ramp = make("span", { class: "ramp", "aria-hidden": "true" });
  for (let k = 0; k < LEVELS; k++) ramp.append(make("i", { class: `${kind}${k}` }));
  const [low, middle, high] = texts;
  return [make("span", {}, low), ramp, make("span", {}, high), make("span", {}, middle ? `${about}; the middle is ${middle}` : about)];
}
