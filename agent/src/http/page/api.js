// Requests to the agent. The token lives in this module's memory and nowhere else; it leaves in the
// Authorization header only.

const JOB = '/api/v1/jobs/current';
const TIMEOUT_MS = 20_000;

/** An answer that is no success, as RFC 9457 describes it. */
export class Problem extends Error {
  constructor(status, title, detail, code) {
    super(detail || title || `the agent answered ${status}`);
    this.status = status;
    this.code = code;
  }
}

export async function problemOf(answer) {
  let body = {};
  try {
    body = await answer.json();
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  return new Problem(answer.status, body.title ?? answer.statusText, body.detail, body.code);
}

let token = '';
/** Counts tokens: an answer to a former one says nothing of this one. */
let tokens = 0;

/** Takes a token, or forgets it with an empty one. */
export function setToken(value) {
  token = value;
  tokens += 1;
  etags.clear();
}

/** Whether a problem is one of the token that there is now. */
export const isOfNow = (problem) => problem.tokens === undefined || problem.tokens === tokens;

export const hasToken = () => token !== '';

export function authorization() {
  return token === '' ? {} : { Authorization: `Bearer ${token}` };
}

export const streamUrl = (since) =>
  `${JOB}/logs/stream${since === undefined ? '' : `?since=${encodeURIComponent(since)}`}`;

/** What was answered last, so that an unchanged answer costs a 304. */
const etags = new Map();

async function ask(path, options = {}) {
  const asked = tokens;
  const answer = await fetch(path, {
    cache: 'no-store',
    signal: AbortSignal.timeout(TIMEOUT_MS),
    ...options,
    headers: { Accept: 'application/json', ...authorization(), ...options.headers },
  });
  if (!answer.ok && answer.status !== 304) {
    throw Object.assign(await problemOf(answer), { tokens: asked });
  }
  return answer;
}

async function get(path) {
  const known = etags.get(path);
  const answer = await ask(path, { headers: known ? { 'If-None-Match': known.etag } : {} });
  if (answer.status === 304) return known.body;
  const body = await answer.json();
  const etag = answer.headers.get('ETag');
  if (etag) etags.set(path, { etag, body });
  return body;
}

export const status = () => get(`${JOB}?logs=0`);

/** Some of the history after an entry: {events, has_more}. */
export const events = (since) =>
  get(since === undefined ? `${JOB}/events` : `${JOB}/events?since=${since}`);

export const checkpoints = async () => (await get(`${JOB}/checkpoints`)).checkpoints;

export const version = () => get('/version');

export function logs(query) {
  return get(`${JOB}/logs?${new URLSearchParams({ format: 'json', ...query })}`);
}

/** All series: [{name, points}]. */
export async function series(maxPoints) {
  return (await get(`${JOB}/metrics?max_points=${maxPoints}`)).series;
}

/** Whether whoever asks may give orders, found out without giving one. */
export async function mayControl() {
  const answer = await fetch(`${JOB}/limits`, {
    method: 'OPTIONS',
    headers: authorization(),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  return answer.status !== 401 && answer.status !== 403;
}

/** A key of one order, so that a repeated request is not a second order. Works without TLS, too. */
function key() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

async function order(method, path, body) {
  const answer = await ask(`${JOB}/${path}`, {
    method,
    body: JSON.stringify(body),
    headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key() },
  });
  const text = await answer.text();
  return text === '' ? {} : JSON.parse(text);
}

export const checkpointNow = () => order('POST', 'checkpoint', {});
export const stop = (what) => order('POST', 'stop', what);
export const changeLimits = (what) => order('PATCH', 'limits', what);
