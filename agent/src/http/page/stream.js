// Server-sent events over `fetch`, because `EventSource` cannot send an Authorization header and a
// token must never be part of a URL. Reconnects for ever, with Last-Event-ID, until it is closed.

import { Problem, problemOf } from './api.js';

/** Nothing for this long, though a heartbeat comes every 15 s: the connection is dead. */
const SILENCE_MAX_MS = 40_000;
const RETRY_FIRST_MS = 3_000;
const RETRY_MAX_MS = 30_000;
/** A line that never ends is not an event. */
const LINE_CHARACTERS_MAX = 1 << 20;

/** Cuts a stream of text into events; `take` gets {event, data, id} of each. */
export function parser(take, retry) {
  let rest = '';
  let event = '';
  let data = [];
  let id;
  const line = (text) => {
    if (text === '') {
      if (data.length > 0) take({ event: event || 'message', data: data.join('\n'), id });
      event = '';
      data = [];
      return;
    }
    if (text.startsWith(':')) return;
    const colon = text.indexOf(':');
    const field = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? '' : text.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') event = value;
    else if (field === 'data') data.push(value);
    else if (field === 'id' && !value.includes('\0')) id = value;
    else if (field === 'retry' && /^\d+$/.test(value)) retry(Number(value));
  };
  return (chunk) => {
    const text = rest + chunk;
    // A carriage return at the very end may be half of a CRLF.
    const whole = text.endsWith('\r') ? text.slice(0, -1) : text;
    const lines = whole.split(/\r\n|\n|\r/);
    rest = lines.pop() + text.slice(whole.length);
    if (rest.length > LINE_CHARACTERS_MAX) rest = '';
    lines.forEach(line);
  };
}

export class Stream {
  /**
   * `hooks`: `open()`, `event({event, data})` with data parsed from JSON, `heard()` for any bytes,
   * `lost(why, delayMs)` before each new try, `refused(problem)` for 401 and 403.
   */
  constructor(url, headers, hooks) {
    this.url = url;
    this.headers = headers;
    this.hooks = hooks;
    this.lastId = undefined;
    this.closed = false;
    this.delay = RETRY_FIRST_MS;
    this.retry = RETRY_FIRST_MS;
    this.run();
  }

  close() {
    this.closed = true;
    this.abort?.abort();
    this.wake?.();
  }

  /** Ends the wait for the next try: the network is back, or a person does not want to wait. */
  hurry() {
    this.wake?.();
  }

  async run() {
    while (!this.closed) {
      let why;
      try {
        why = await this.read();
      } catch (error) {
        if (this.closed) return;
        if (error instanceof Problem && (error.status === 401 || error.status === 403)) {
          this.hooks.refused(error);
          return;
        }
        why = error instanceof Problem ? error.message : 'the agent cannot be reached';
      }
      if (this.closed) return;
      const delay = this.delay * (0.8 + 0.4 * Math.random());
      this.delay = Math.min(this.delay * 1.6, RETRY_MAX_MS);
      this.hooks.lost(why, delay);
      await new Promise((wake) => {
        this.wake = wake;
        setTimeout(wake, delay);
      });
    }
  }

  /** One connection, until it ends; returns why. */
  async read() {
    this.abort = new AbortController();
    const headers = { Accept: 'text/event-stream', ...this.headers() };
    if (this.lastId !== undefined) headers['Last-Event-ID'] = this.lastId;
    let silence;
    let timedOut = false;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => {
        timedOut = true;
        this.abort.abort();
      }, SILENCE_MAX_MS);
    };
    alive();
    try {
      const answer = await fetch(this.url(), {
        headers,
        cache: 'no-store',
        signal: this.abort.signal,
      });
      if (!answer.ok) throw await problemOf(answer);
      this.hooks.open();
      const take = (message) => {
        if (message.id !== undefined) this.lastId = message.id;
        this.take(message);
      };
      const parse = parser(take, (ms) => (this.retry = Math.min(ms, RETRY_MAX_MS)));
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return 'the agent closed the connection';
        this.delay = this.retry;
        alive();
        this.hooks.heard();
        parse(value);
      }
    } catch (error) {
      if (timedOut) return 'nothing was heard for a while';
      throw error;
    } finally {
      clearTimeout(silence);
      this.abort.abort();
    }
  }

  take({ event, data }) {
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      return; // Not one of ours; the next one may be.
    }
    this.hooks.event(event, value);
  }
}
