// How numbers, times and sizes are written on the page. Pure functions; everything that is not a
// finite number becomes a dash.

export const DASH = '–';

const known = (value) => typeof value === 'number' && Number.isFinite(value);

/** A whole number with thin separators: 20 000. */
export function count(value) {
  if (!known(value)) return DASH;
  return Math.round(value).toLocaleString('en-US').replaceAll(',', '\u202f');
}

/** A large number in three digits: 681.6 M. */
export function short(value) {
  if (!known(value)) return DASH;
  const units = ['', ' k', ' M', ' G', ' T', ' P'];
  let unit = 0;
  let rest = Math.abs(value);
  while (rest >= 1000 && unit < units.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  const digits = unit === 0 && Number.isInteger(rest) ? 0 : rest >= 100 ? 0 : rest >= 10 ? 1 : 2;
  return `${value < 0 ? '−' : ''}${rest.toFixed(digits)}${units[unit]}`;
}

/** A figure of a curve, four significant digits. */
export function figure(value) {
  if (!known(value)) return DASH;
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 100000) return short(value);
  if (size < 0.001) return value.toExponential(2).replace('e-', 'e−');
  return value.toPrecision(4).replace(/(\.\d*?)0+$/, '$1').replace(/\.$/, '');
}

/** A round number at an axis: 6e−4, 0.5, 12, 2.5 k. */
export function tick(value) {
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size < 0.001) return Number(value.toExponential(2)).toExponential().replace('e-', 'e−');
  if (size < 1000) return String(Number(value.toPrecision(3)));
  return short(value).replace(/\.0+ /, ' ').replace(/(\.\d)0 /, '$1 ');
}

/** Losses are compared, so they keep their four decimals. */
export function loss(value) {
  return known(value) ? value.toFixed(4) : DASH;
}

export function percent(value, digits = 1) {
  return known(value) ? `${value.toFixed(digits)} %` : DASH;
}

/** Dollars: cents where there are many, more digits where there are few. */
export function dollars(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  const digits = size === 0 || size >= 1 ? 2 : size >= 0.01 ? 3 : 4;
  return `$${value.toFixed(digits)}`;
}

export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let rest = value;
  while (rest >= 1024 && unit < units.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${rest.toFixed(unit === 0 || rest >= 100 ? 0 : 1)} ${units[unit]}`;
}

/** A length of time by its two largest units: 4 h 13 min. */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const whole = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(whole / 86400), 'd'],
    [Math.floor(whole / 3600) % 24, 'h'],
    [Math.floor(whole / 60) % 60, 'min'],
    [whole % 60, 's'],
  ];
  if (whole >= 600) parts.pop(); // Nobody needs the seconds of an hour.
  const first = parts.findIndex(([size]) => size > 0);
  if (first < 0) return '0 s';
  const shown = parts.slice(first, first + 2).filter(([size]) => size > 0);
  return shown.map(([size, unit]) => `${size} ${unit}`).join(' ');
}

/** A clock that runs down: 4:13:20. */
export function countdown(seconds) {
  if (!known(seconds)) return DASH;
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, '0');
  const hours = Math.floor(whole / 3600);
  return `${hours}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

/** The time of day of an RFC 3339 text, in the reader's zone. */
export function clock(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return DASH;
  return time.toLocaleTimeString('en-GB');
}

/** Day and time of an RFC 3339 text, in the reader's zone. */
export function moment(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return DASH;
  const day = time.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' });
  return `${day} ${time.toLocaleTimeString('en-GB')}`;
}

/** `lease_lost` as a person writes it. */
export function words(name) {
  return String(name ?? '').replaceAll('_', ' ');
}

/** Reads `6h`, `90m`, `1h30m`, `45s` or plain seconds; NaN if it is none of them. */
export function parseDuration(text) {
  const plain = text.trim().toLowerCase();
  if (/^\d+(\.\d+)?$/.test(plain)) return Number(plain);
  const parts = plain.replaceAll(' ', '').match(/^(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$/);
  if (!parts || parts.slice(1).every((part) => part === undefined)) return Number.NaN;
  const [days, hours, minutes, seconds] = parts.slice(1).map((part) => Number(part ?? 0));
  return ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
}

/** The other way round: 5400 as `1h30m`. */
export function writeDuration(seconds) {
  if (!known(seconds)) return '';
  const whole = Math.round(seconds);
  const parts = [
    [Math.floor(whole / 3600), 'h'],
    [Math.floor(whole / 60) % 60, 'm'],
    [whole % 60, 's'],
  ];
  const there = parts.filter(([size]) => size > 0);
  return there.map(([size, unit]) => `${size}${unit}`).join('') || '0s';
}
