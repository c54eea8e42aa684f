// From a decoded image to the model's input as model.json says, pixel by pixel as Pillow resizes: a browser's own
// scaling differs from it, by browser and by machine. No page is needed, so Node.js runs it too.

const BITS = 22;  // of the fraction of Pillow's weights, which are whole numbers
const FILTERS = {
  bilinear: {reach: 1, weight: x => Math.max(0, 1 - Math.abs(x))},
  bicubic: {reach: 2, weight: x => cubic(Math.abs(x), -0.5)},
};

function cubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function halfToEven(value) {
  const low = Math.floor(value), rest = value - low;
  return rest === 0.5 ? low + low % 2 : Math.round(value);
}

const ROUNDINGS = {floor: Math.floor, "half to even": halfToEven};

// Of `source` pixels that become `scaled`, what each of `count` from `start` on is made of: where it begins, and weights.
function taps(source, scaled, start, count, filter) {
  const scale = source / scaled, stretch = Math.max(scale, 1), reach = filter.reach * stretch;
  return Array.from({length: count}, (_, index) => {
    const centre = (start + index + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - reach + 0.5)), to = Math.min(source, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({length: to - from}, (_, place) => filter.weight((place + from - centre + 0.5) / stretch));
    const sum = raw.reduce((one, other) => one + other, 0);
    return {from, weights: raw.map(weight => Math.trunc(weight / sum * 2 ** BITS + (weight < 0 ? -0.5 : 0.5)))};
  });
}

// One direction. Images are {width, height, data}, four bytes a pixel, of which the last is not looked at.
function pass(image, isAcross, wanted) {
  const width = isAcross ? wanted.length : image.width, height = isAcross ? image.height : wanted.length;
  const data = new Uint8ClampedArray(4 * width * height), step = isAcross ? 4 : 4 * image.width;
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const {from, weights} = wanted[isAcross ? x : y];
    const first = isAcross ? 4 * (y * image.width + from) : 4 * (from * image.width + x);
    for (let channel = 0; channel < 3; channel++) {
      let sum = 2 ** (BITS - 1);
      for (let place = 0; place < weights.length; place++) sum += image.data[first + place * step + channel] * weights[place];
      data[4 * (y * width + x) + channel] = Math.floor(sum / 2 ** BITS);
    }
  }
  return {width, height, data};
}

// The lines of an image that `wanted` needs, and the same taps counted from the first of them.
function needed(image, isAcross, wanted) {
  const first = Math.min(...wanted.map(tap => tap.from));
  const last = Math.max(...wanted.map(tap => tap.from + tap.weights.length));
  const whole = Array.from({length: last - first}, (_, index) => ({from: first + index, weights: [2 ** BITS]}));
  return [pass(image, isAcross, whole), wanted.map(tap => ({...tap, from: tap.from - first}))];
}

// The part at (left, top) of the image scaled to width x height, as Pillow's resize and crop.
export function scaledPart(image, [width, height], [left, top], [across, down], interpolation) {
  const filter = FILTERS[interpolation];
  const byX = taps(image.width, width, left, across, filter), byY = taps(image.height, height, top, down, filter);
  const rows = image.height - height, columns = image.width - width;  // how many there are fewer
  // Pillow goes across first, unless more than twice as many rows as columns go; levels are rounded in between.
  const order = rows > Math.max(0, 2 * columns) ? [[false, byY], [true, byX]] : [[true, byX], [false, byY]];
  const [part, last] = needed(image, order[1][0], order[1][1]);
  return pass(pass(part, ...order[0]), order[1][0], last);
}

function shortest(card, image) {
  const size = card.image_size, says = card.resizing, short = Math.min(image.width, image.height);
  const sides = [image.width, image.height].map(side => ROUNDINGS[says.long_side_rounding](size * side / short));
  const offsets = sides.map(side => ROUNDINGS[says.crop_offset_rounding]((side - size) / 2));
  return scaledPart(image, sides, offsets, [size, size], says.interpolation);
}

function squash(card, image) {
  const sides = [card.image_size, card.image_size];
  return scaledPart(image, sides, [0, 0], sides, card.resizing.interpolation);
}

function longest(card, image) {
  const size = card.image_size, says = card.resizing, long = Math.max(image.width, image.height);
  const sides = [image.width, image.height].map(
    side => side === long ? size : Math.max(1, ROUNDINGS[says.short_side_rounding](size * side / long)));
  const inner = scaledPart(image, sides, [0, 0], sides, says.interpolation);
  const [left, top] = sides.map(side => ROUNDINGS[says.pad_offset_rounding]((size - side) / 2));
  const data = Uint8ClampedArray.from({length: 4 * size * size}, (_, index) => says.fill[index % 4] ?? 255);
  for (let y = 0; y < inner.height; y++)
    data.set(inner.data.subarray(4 * y * inner.width, 4 * (y + 1) * inner.width), 4 * ((top + y) * size + left));
  return {width: size, height: size, data};
}

// Float32Array of 3 x S x S: the file's input for one image.
export function inputOf(card, image) {
  const square = {shortest, squash, longest}[card.resizing.mode](card, image).data, pixels = square.length / 4;
  const [mean, std] = [card.mean, card.std].map(values => Float32Array.from(values));
  const input = new Float32Array(3 * pixels);
  for (let channel = 0; channel < 3; channel++) for (let pixel = 0; pixel < pixels; pixel++) {
    const value = Math.fround(square[4 * pixel + channel] / 255);
    input[channel * pixels + pixel] = Math.fround(value - mean[channel]) / std[channel];
  }
  return input;
}
