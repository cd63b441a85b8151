"use strict";
// The page of the server: a conversation, and the contexts that questions are asked of.

const $ = (id) => document.getElementById(id);
const turns = [];        // {role, content}
let asked = null;        // the context that is asked, as the server shows it
let running = null;      // AbortController of the answer under way
const reading = new Map(); // contexts that are followed, by id

// ---- the server ----

function headers(more) {
  const key = localStorage.getItem("longview-key");
  return { ...(key ? { authorization: `Bearer ${key}` } : {}), ...more };
}

async function call(method, path, body, signal) {
  const answer = await fetch(path, {
    method, signal,
    headers: headers(body === undefined ? {} : { "content-type": "application/json" }),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  let message = `${answer.status} ${answer.statusText}`;
  try { message = (await answer.json()).error.message; } catch { /* no JSON: the status must do */ }
  if (answer.status === 401) $("access").open = true;
  throw new Error(message);
}

// Events of a streamed answer, as {event, data}.
async function* events(answer) {
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const message = { event: "message", data: "" };
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) message.event = line.slice(7);
        if (line.startsWith("data: ")) message.data += line.slice(6);
      }
      if (message.data) yield message;
    }
  }
}

// ---- numbers in words ----

const count = (n) => Number(n).toLocaleString("en");
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return unit === 0 ? `${n} B` : `${n.toFixed(1)} ${units[unit]}`;
}
const seconds = (s) => s < 10 ? `${s.toFixed(2)} s` : s < 120 ? `${s.toFixed(0)} s` : `${(s / 60).toFixed(0)} min`;

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// ---- contexts ----

function tell(text, wrong) {
  $("contexts-note").textContent = text;
  $("contexts-note").classList.toggle("wrong", Boolean(wrong));
}

async function list() {
  try {
    const { data } = await (await call("GET", "v1/contexts")).json();
    if (asked) asked = data.find((one) => one.id === asked.id) || null;
    show(data);
    for (const one of data) {
      if ((one.status === "reading" || one.status === "queued") && !reading.has(one.id)) follow(one.id);
    }
  } catch (error) { tell(error.message, true); }
}

function show(data) {
  const focused = document.activeElement && document.activeElement.dataset.key;
  $("contexts").replaceChildren(...data.map(item));
  if (focused) {
    const again = document.querySelector(`[data-key="${CSS.escape(focused)}"]`);
    if (again) again.focus();
  }
  if (!data.length) $("contexts").append(element("li", { class: "note" }, "None yet: drop a document above."));
  $("asked").textContent = asked
    ? `Questions go to “${asked.label || asked.title}” (${count(asked.tokens)} tokens).`
    : "Questions go to the model alone; choose a context to ask it.";
}

function item(one) {
  const is = asked && asked.id === one.id;
  const busy = one.status === "reading" || one.status === "queued";
  const button = (word, work, extra) => element("button", {
    type: "button", "data-key": `${one.id} ${word}`, "aria-label": `${word} ${one.label || one.title}`, onclick: work, ...extra,
  }, word);
  const act = (work) => async () => {
    try { tell(""); await work(); await list(); } catch (error) { tell(error.message, true); }
  };
  const post = (what) => act(() => call("POST", `v1/contexts/${one.id}/${what}`, what === "fork" ? {} : undefined));
  const places = Object.entries(one.bytes_by_tier).map(([place, n]) => `${bytes(n)} ${place === "memory" ? "in" : "on"} ${place}`);
  const where = places.length ? places.join(", ") : one.bytes ? bytes(one.bytes) : "";
  const words = busy
    ? `${one.status}: ${count(one.read_tokens)} of ${count(one.tokens)} tokens`
    : `${count(one.tokens)} tokens${where ? ` · ${where}` : ""}${one.pinned ? " · pinned" : ""}` +
      (one.status === "ready" ? "" : ` · ${one.status} at ${count(one.read_tokens)}`) + (one.error ? ` · ${one.error}` : "");
  return element("li", { class: is ? "asked" : null, "data-id": one.id },
    element("div", { class: "title" }, one.label || one.title || one.id),
    element("p", { class: "note" }, words),
    busy ? element("progress", { max: one.tokens, value: one.read_tokens, "aria-label": `${one.title} is read` }) : null,
    element("div", { class: "row" },
      button(is ? "Leave" : "Ask", act(async () => { asked = is ? null : one; $("question").focus(); }), { "aria-pressed": String(Boolean(is)) }),
      busy ? button("Cancel", post("cancel")) : null,
      !busy && one.status !== "ready" ? button("Resume", post("resume")) : null,
      button("Fork", post("fork")),
      button(one.pinned ? "Unpin" : "Pin", act(() => call("PATCH", `v1/contexts/${one.id}`, { pinned: !one.pinned }))),
      button("Delete", act(() => call("DELETE", `v1/contexts/${one.id}`)))));
}

// Shows how far the reading of a context is until it ends.
async function follow(id) {
  reading.set(id, true);
  try {
    const answer = await call("GET", `v1/contexts/${id}/events`);
    for await (const { data } of events(answer)) {
      const news = JSON.parse(data);
      const node = document.querySelector(`#contexts li[data-id="${CSS.escape(id)}"]`);
      if (!node) continue;
      const bar = node.querySelector("progress");
      if (bar) { bar.max = news.total_tokens; bar.value = news.done_tokens; }
      const left = news.seconds_left === null ? "" : `, ${seconds(news.seconds_left)} left`;
      node.querySelector(".note").textContent =
        `${news.status}: ${count(news.done_tokens)} of ${count(news.total_tokens)} tokens` +
        ` (${count(news.reused_tokens)} taken over${left})`;
    }
  } catch (error) { tell(error.message, true); }
  reading.delete(id);
  list();
}

async function add(text, title) {
  tell(`sending ${title} …`);
  const answer = await call("POST", "v1/contexts", { text, title });
  asked = await answer.json();
  tell("");
  await list();
}

async function addFiles(files) {
  for (const file of files) {
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      await add(text, file.name);
    } catch (error) {
      tell(error instanceof TypeError ? `${file.name} is not UTF-8 text` : `${file.name}: ${error.message}`, true);
    }
  }
}

// ---- the conversation ----

function turn(role, text) {
  const said = element("div", { class: "said" }, text);
  const numbers = element("p", { class: "numbers" });
  const item = element("li", { class: role },
    element("div", { class: "who" }, role === "user" ? "You" : "Longview"), said, numbers);
  $("turns").append(item);
  $("turns").scrollTop = $("turns").scrollHeight;
  return { said, numbers, item };
}

// What was chosen of the stages that a question may choose.
function methods() {
  const chosen = {};
  for (const stage of ["keep", "prefill", "read"]) {
    const text = $(stage).value.trim();
    if (text) chosen[stage] = text;
  }
  return chosen;
}

// What methods have dropped or passed over.
function touched(report) {
  const words = [];
  if (report.moved_tokens) words.push(`${count(report.moved_tokens)} tokens moved (approximate)`);
  if (report.keep) words.push(`${count(report.keep.pairs_dropped)} of ${count(report.keep.pairs_seen)} pairs dropped`);
  if (report.read) words.push(`${count(report.read.pages_read)} of ${count(report.read.pages_present)} pages read`);
  return words;
}

async function ask() {
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  turns.push({ role: "user", content: question });
  turn("user", question);
  const { said, numbers, item } = turn("assistant", "");
  running = new AbortController();
  $("send").disabled = true; $("stop").disabled = false;
  let text = "", report = null;
  const started = performance.now();
  try {
    const answer = await call("POST", "v1/chat/completions", {
      messages: turns, stream: true, stream_options: { include_usage: true },
      max_tokens: Number($("max").value) || 512,
      longview: {
        progress: true, attention: $("attention").checked, ...(asked ? { context: asked.id } : {}), ...methods(),
      },
    }, running.signal);
    for await (const { data } of events(answer)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const progress = chunk.longview && chunk.longview.progress;
      if (progress && !text) {
        numbers.textContent = `reading: ${count(progress.done_tokens)} of ${count(progress.total_tokens)} tokens, ` +
          `${count(progress.reused_tokens)} taken over`;
      } else if (chunk.longview) {
        report = { ...chunk.longview, usage: chunk.usage };
      }
      for (const choice of chunk.choices) {
        if (choice.delta && choice.delta.content) {
          text += choice.delta.content;
          said.textContent = text;
          $("turns").scrollTop = $("turns").scrollHeight;
        }
      }
    }
    turns.push({ role: "assistant", content: text });
  } catch (error) {
    if (error.name === "AbortError") {
      numbers.textContent = "stopped; what was read is kept";
      if (text) turns.push({ role: "assistant", content: text }); else turns.pop();
    } else {
      numbers.textContent = error.message;
      numbers.classList.add("wrong");
      turns.pop();
    }
  }
  if (report) {
    const total = (performance.now() - started) / 1000;
    const first = report.seconds_to_first_token;
    const written = report.usage.completion_tokens;
    const rate = written > 1 && total > first ? ` · ${((written - 1) / (total - first)).toFixed(1)} tokens a second` : "";
    numbers.textContent = `${count(report.reused_tokens)} tokens taken over, ${count(report.computed_tokens)} computed · ` +
      `first token after ${seconds(first)} · ${count(written)} written${rate}` +
      [...touched(report), ...report.notices].map((words) => ` · ${words}`).join("");
    if (report.attention) item.append(picture(report.attention));
  }
  running = null;
  $("send").disabled = false; $("stop").disabled = true;
  list();
}

// ---- what an answer's attention rested on ----

const CELLS = 96;  // parts of the picture at most
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

// A strip of the text from its beginning to its end: the taller a bar, the more attention rested there; what is pale was
// read by no step. The first block is left out of the scale: attention rests there that has nowhere else to go.
function picture(attention) {
  const blocks = attention.mass.length;
  const cells = Math.min(blocks, CELLS);
  const of = (list, cell) => list.slice(Math.floor(cell * blocks / cells), Math.floor((cell + 1) * blocks / cells));
  const mass = Array.from({ length: cells }, (_, cell) => of(attention.mass, cell).reduce((sum, share) => sum + share, 0));
  const read = Array.from({ length: cells }, (_, cell) => Math.max(...of(attention.read, cell)));
  const most = Math.max(...mass.slice(cells > 1 ? 1 : 0), 1e-9);
  const strip = shape("svg", { viewBox: `0 0 ${cells} 20`, preserveAspectRatio: "none", class: "strip", role: "img" });
  mass.forEach((share, cell) => {
    const height = 20 * Math.sqrt(Math.min(share / most, 1));
    if (read[cell] > 0) strip.append(shape("rect", { class: "read", x: cell, y: 0, width: 1, height: 20 }));
    strip.append(shape("rect", { class: "mass", x: cell, y: 20 - height, width: 1, height }));
  });
  const parts = attention.most.map((part) => `tokens ${count(part.first_token)} to ${count(part.end_token)}: ${percent(part.mass)}`);
  const unread = attention.read.filter((share) => share === 0).length;
  const left = unread ? `; ${count(unread)} of ${count(blocks)} blocks were not read` : "";
  strip.setAttribute("aria-label", parts.length
    ? `Where the attention rested: ${parts.join(", ")}${left}` : "The attention rested on the first tokens and the answer alone");
  const list = element("ol", {}, ...attention.most.map((part) =>
    element("li", {}, `${percent(part.mass)} on tokens ${count(part.first_token)} to ${count(part.end_token)}: “${part.text.trim()}”`)));
  return element("details", { class: "attention" },
    element("summary", {}, strip, element("span", {}, `Where the attention rested${left}`)), list);
}

// ---- what people do ----

$("ask-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
$("stop").addEventListener("click", () => running && running.abort());
$("clear").addEventListener("click", () => {
  if (running) running.abort();
  turns.length = 0;
  $("turns").replaceChildren();
  $("question").focus();
});
$("files").addEventListener("change", async () => { await addFiles([...$("files").files]); $("files").value = ""; });
$("paste-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("paste").value;
  if (!text.trim()) return;
  try { await add(text, text.trim().slice(0, 60)); $("paste").value = ""; } catch (error) { tell(error.message, true); }
});
for (const kind of ["dragover", "dragenter"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  addFiles([...event.dataTransfer.files]);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  localStorage.setItem("longview-key", $("key").value);
  $("access").open = false;
  begin();
});

async function begin() {
  try {
    const { data } = await (await call("GET", "v1/models")).json();
    $("model").textContent = `${data[0].id} · up to ${count(data[0].context_length)} tokens · ${bytes(data[0].kv_bytes_per_token)} a token`;
    await list();
  } catch (error) { $("model").textContent = error.message; }
}
begin();
$("question").focus();
