'use strict';
// The chat keeps the whole conversation and sends it with every request; the dashboard polls /v1/stats while it is shown.

const at = (id) => document.getElementById(id);
const views = ['chat', 'dashboard', 'settings'];
let messages = [];
let abort = null;

// Settings.

const settings = at('settings-form');

function loadSettings() {
  let saved = {};
  try { saved = JSON.parse(localStorage.getItem('thermocline') || '{}'); } catch (error) { saved = {}; }
  for (const field of settings.elements) if (field.name in saved) field.value = saved[field.name];
}

function saveSettings() {
  try {
    localStorage.setItem('thermocline', JSON.stringify(Object.fromEntries(new FormData(settings))));
  } catch (error) { /* a private window: they last as long as the page */ }
}

function setting(name) { return settings.elements[name].value.trim(); }

function headers() {
  const out = {'Content-Type': 'application/json'};
  if (setting('key')) out.Authorization = 'Bearer ' + setting('key');
  return out;
}

// Views.

function show(name) {
  for (const view of views) {
    at(view).hidden = view !== name;
    at('tab-' + view).setAttribute('aria-selected', String(view === name));
    at('tab-' + view).tabIndex = view === name ? 0 : -1;
  }
  if (name === 'chat') at('input').focus();
  if (name === 'dashboard') {
    refresh();
    refreshExperts();
  }
  if (location.hash !== '#/' + name) history.replaceState(null, '', '#/' + name);
}

// A fragment that is no element's id: the browser would take the focus away to it.
function viewOfAddress() { return views.find((view) => '#/' + view === location.hash) || 'chat'; }

document.querySelector('nav').addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step) return;
  const here = views.findIndex((view) => !at(view).hidden);
  const next = views[(here + step + views.length) % views.length];
  show(next);
  at('tab-' + next).focus();
});

// Chat.

function element(parent, tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function addTurn(role) {
  at('empty').hidden = true;
  const turn = element(at('log'), 'article', 'turn ' + role);
  turn.setAttribute('aria-label', role === 'user' ? 'You' : 'Answer');
  return turn;
}

// Text with code between lines of ``` as the model writes it; what is open is code to the end.
function showText(box, text) {
  const parts = text.split(/^```.*(?:\n|$)/m);
  if (parts.length === 1) {
    box.textContent = text;
    return;
  }
  box.replaceChildren();
  parts.forEach((part, i) => { if (part.trim()) element(box, i % 2 === 0 ? 'div' : 'pre', '', part.replace(/^\n+|\n+$/g, '')); });
}

// One answer while it arrives: where its pieces go, and the message it becomes.
class Answer {
  constructor() {
    this.turn = addTurn('assistant');
    this.message = {role: 'assistant', content: ''};
    this.calls = [];
    this.tokens = 0;
  }

  add(delta) {
    const thought = delta.reasoning_content || delta.reasoning;  // --reasoning-field
    if (thought) {
      if (!this.thought) {
        const details = document.createElement('details');
        this.turn.prepend(details);
        element(details, 'summary', '', 'Thinking');
        this.thought = element(details, 'div', 'text', '');
      }
      this.message.reasoning_content = (this.message.reasoning_content || '') + thought;
      this.thought.textContent = this.message.reasoning_content;
    }
    if (delta.content) {
      if (!this.text) this.text = element(this.turn, 'div', 'text', '');
      this.message.content += delta.content;
      showText(this.text, this.message.content);
    }
    for (const piece of delta.tool_calls || []) this.addCall(piece);
  }

  addCall(piece) {
    if (!this.calls[piece.index]) {
      const box = element(this.turn, 'div', 'call');
      element(box, 'b', '', 'Calls ' + piece.function.name);
      this.calls[piece.index] = {id: piece.id, type: 'function', function: {name: piece.function.name, arguments: ''},
                                 shown: element(box, 'pre', '', '')};
    }
    const call = this.calls[piece.index];
    call.function.arguments += piece.function.arguments || '';
    call.shown.textContent = call.function.arguments;
  }

  finish() {
    if (this.calls.length > 0)
      this.message.tool_calls = this.calls.map(({id, type, function: named}) => ({id, type, function: named}));
    if (!this.message.content && !this.message.reasoning_content && this.calls.length === 0)
      element(this.turn, 'div', 'quiet', '(empty answer)');
  }
}

function requestBody() {
  const body = {messages: [], stream: true, stream_options: {include_usage: true}};
  if (setting('system')) body.messages.push({role: 'system', content: setting('system')});
  body.messages.push(...messages);
  for (const name of ['temperature', 'top_p', 'max_tokens']) if (setting(name)) body[name] = Number(setting(name));
  if (setting('effort')) body.reasoning_effort = setting('effort');
  if (setting('tools')) body.tools = JSON.parse(setting('tools'));
  return body;
}

// Calls `take` with the JSON of every event of a stream.
async function readEvents(response, take) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    held += decoder.decode(value, {stream: true});
    let end;
    while ((end = held.indexOf('\n\n')) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (event.startsWith('data: {')) take(JSON.parse(event.slice(6)));
    }
  }
}

async function refusal(response) {
  const text = await response.text();
  try { return JSON.parse(text).error.message; } catch (error) { return response.status + ' ' + text.slice(0, 200); }
}

async function stream(answer) {
  const response = await fetch('/v1/chat/completions',
                               {method: 'POST', headers: headers(), body: JSON.stringify(requestBody()), signal: abort.signal});
  if (!response.ok) throw new Error(await refusal(response));
  const log = at('log');
  let first = 0;
  await readEvents(response, (event) => {
    if (event.error) throw new Error(event.error.message);
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    for (const choice of event.choices) {
      answer.add(choice.delta);
      if (choice.finish_reason === 'length') element(answer.turn, 'div', 'quiet', '(cut at the token limit)');
    }
    if (event.choices.length > 0) {
      first = first || performance.now();
      answer.tokens += 1;
      const rate = (answer.tokens - 1) * 1000 / Math.max(1, performance.now() - first);
      at('status').textContent = rate.toFixed(1) + ' tok/s';
    }
    if (event.usage) showUsage(event);
    if (follows) log.scrollTop = log.scrollHeight;
  });
}

function showUsage({usage, timings}) {
  at('status').textContent = usage.prompt_tokens + ' prompt tokens (' + usage.prompt_tokens_details.cached_tokens +
      ' cached), ' + usage.completion_tokens + ' answer tokens, ' + timings.predicted_per_second.toFixed(1) + ' tok/s';
}

async function send() {
  const text = at('input').value.trim();
  if (!text || abort) return;
  at('input').value = '';
  element(addTurn('user'), 'div', 'text', text);
  messages.push({role: 'user', content: text});
  const answer = new Answer();
  at('log').scrollTop = at('log').scrollHeight;
  abort = new AbortController();
  at('send').disabled = true;
  at('stop').disabled = false;
  at('status').textContent = 'reading the prompt';
  try {
    await stream(answer);
    answer.finish();
  } catch (error) {
    const stopped = error.name === 'AbortError';
    element(answer.turn, 'div', stopped ? 'quiet' : 'error', stopped ? '(stopped)' : error.message);
    if (!stopped) at('status').textContent = '';
  }
  messages.push(answer.message);
  abort = null;
  at('send').disabled = false;
  at('stop').disabled = true;
  at('log').scrollTop = at('log').scrollHeight;
}

function stop() { if (abort) abort.abort(); }

function reset() {
  stop();
  messages = [];
  for (const turn of document.querySelectorAll('.turn')) turn.remove();
  at('empty').hidden = false;
  at('status').textContent = '';
  at('input').focus();
}

// Dashboard.

const peaks = {decode: 1, prefill: 1};  // where the server did not measure its memory
const timeNames = {time_to_first_token: 'to the first token', inter_token_latency: 'between tokens', queue: 'waiting',
                   request: 'whole request'};

function setMeter(id, share, text) {
  at(id).value = share;
  at(id + '-text').textContent = text;
}

function showBandwidth(id, value, limit) {
  peaks[id] = Math.max(peaks[id], value);
  const share = limit ? ', ' + (100 * value / limit).toFixed(value < limit / 10 ? 1 : 0) + ' %' : '';
  setMeter(id, value / (limit || peaks[id]), value.toFixed(value < 1 ? 3 : 1) + ' GB/s' + share);
}

function showStats(stats) {
  at('running').textContent = stats.requests.running;
  at('waiting').textContent = stats.requests.waiting;
  at('finished').textContent = stats.finished.stop + stats.finished.length;
  at('failed').textContent = stats.finished.error + stats.finished.abort;
  at('generated').textContent = stats.tokens.generated.toLocaleString('en');
  at('speed').textContent = stats.last_request.decode_tokens_per_second.toFixed(1);
  setMeter('kv', stats.kv_cache_usage, (100 * stats.kv_cache_usage).toFixed(1) + ' %');
  const share = stats.tokens.prompt > 0 ? stats.tokens.cached / stats.tokens.prompt : 0;
  setMeter('hits', share, (100 * share).toFixed(1) + ' %');
  const limit = stats.memory_gb_per_second;
  showBandwidth('decode', stats.last_request.decode_gb_per_second, limit);
  showBandwidth('prefill', stats.last_request.prefill_gb_per_second, limit);
  at('bandwidth-scale').textContent = limit ? `the ${limit.toFixed(1)} GB/s that the memory of this machine gave at the start`
                                            : 'the highest value since this page was opened';
  at('times').replaceChildren();
  for (const [name, time] of Object.entries(stats.seconds)) {
    const row = element(at('times'), 'tr', '');
    element(row, 'td', '', timeNames[name] || name);
    for (const value of [time.mean, time.p50, time.p95]) element(row, 'td', '', value.toFixed(3));
  }
  at('uptime').textContent = 'up for ' + Math.round(stats.uptime_seconds) + ' s, model ' + stats.model;
}

// Experts of one layer a row, as high as they are wide where there is room.
function showExperts(experts) {
  const across = Math.max(...experts.chosen.map((layer) => layer.length));
  const canvas = at('atlas');
  const height = Math.max(3, Math.min(18, Math.round(480 / experts.chosen.length)));
  canvas.width = Math.max(across * 3, 900);
  canvas.height = experts.chosen.length * height;
  const draw = canvas.getContext('2d');
  const width = canvas.width / across;
  let onCard = 0;
  experts.chosen.forEach((counts, layer) => {
    const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
    const resident = new Set(experts.on_card[layer]);
    onCard += resident.size;
    counts.forEach((count, expert) => {
      const depth = mean > 0 ? Math.min(1, Math.sqrt(count / mean / 4)) : 0;
      draw.fillStyle = `hsl(${resident.has(expert) ? 18 : 212} ${30 + 55 * depth}% ${94 - 64 * depth}%)`;
      draw.fillRect(expert * width, layer * height, Math.ceil(width), height);
    });
  });
  const all = experts.chosen.reduce((sum, layer) => sum + layer.length, 0);
  const hits = experts.choices > 0 ? `, ${(100 * experts.hits / experts.choices).toFixed(1)} % of the choices found theirs there` : '';
  const moved = experts.moved_experts === 0 ? '' :
    `; ${experts.moved_experts.toLocaleString('en')} brought there, ${(experts.moved_bytes / 1e9).toFixed(2)} GB`;
  const adopted = experts.adopted_experts === 0 ? '' :
    `; ${experts.adopted_experts.toLocaleString('en')} of ${experts.streamed_experts.toLocaleString('en')} that came for prompts stayed`;
  const each = (seconds, count) => `${(1e6 * seconds / count).toFixed(1)} us`;
  const gb = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
  const read = experts.layers_played === 0 ? '' :
    `; experts read: ${gb(experts.read_bytes.card)} on the card, ${gb(experts.read_bytes.host)} in host memory, ` +
    `${gb(experts.read_bytes.link)} over the link, busy ${experts.link_seconds.toFixed(1)} s; ` +
    `CPU ${each(experts.cpu_seconds, experts.layers_played)} a layer, ` +
    `${each(experts.exposed_seconds, experts.layers_played)} of it not hidden`;
  at('atlas-text').textContent = `${experts.tokens.toLocaleString('en')} tokens; ` +
    `${onCard} of ${all} experts on the card${hits}${moved}${adopted}${read}`;
  at('atlas-section').hidden = false;
}

async function refreshExperts() {
  if (at('dashboard').hidden || document.hidden) return;
  try {
    const response = await fetch('/v1/experts', {headers: headers()});
    if (response.ok) showExperts(await response.json());
  } catch (error) {
    // refresh() says that the server does not answer
  }
}

async function refresh() {
  if (at('dashboard').hidden || document.hidden) return;
  let fault = '';
  try {
    const response = await fetch('/v1/stats', {headers: headers()});
    if (response.ok) showStats(await response.json());
    else fault = await refusal(response);
  } catch (error) {
    fault = 'the server does not answer';
  }
  at('dashboard-error').textContent = fault;
  at('dashboard-error').hidden = !fault;
}

async function showModel() {
  try {
    const response = await fetch('/v1/models', {headers: headers()});
    at('model').textContent = response.ok ? (await response.json()).data[0].id : await refusal(response);
  } catch (error) {
    at('model').textContent = 'the server does not answer';
  }
}

for (const view of views) at('tab-' + view).addEventListener('click', () => show(view));
at('form').addEventListener('submit', (event) => { event.preventDefault(); send(); });
at('stop').addEventListener('click', stop);
at('reset').addEventListener('click', reset);
at('input').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') stop(); });
settings.addEventListener('input', saveSettings);
settings.elements.key.addEventListener('change', showModel);
settings.addEventListener('submit', (event) => event.preventDefault());
window.addEventListener('hashchange', () => show(viewOfAddress()));

loadSettings();
showModel();
show(viewOfAddress());
setInterval(refresh, 2000);
setInterval(refreshExperts, 5000);
