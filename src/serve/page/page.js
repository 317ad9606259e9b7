// The page: conversations that live in the browser, and the server's chat completions.
"use strict";

const $ = (id) => document.getElementById(id);
const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];

const store = {
  read(key, otherwise) {
    try {
      return JSON.parse(localStorage.getItem("moeray." + key)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem("moeray." + key, JSON.stringify(value));
    } catch {
      say("The browser's store is full: delete conversations to keep new ones.");
    }
  },
};

let chats = store.read("chats", []);
let current = null;
let options = store.read("options", {});
let model = "";
let running = null;

const say = (text) => ($("status").textContent = text);
const headers = () => ({ "Content-Type": "application/json", ...(options.key ? { Authorization: "Bearer " + options.key } : {}) });

// ---- conversations

function fresh() {
  const used = chats.find((c) => !c.messages.length);
  const chat = used ?? { id: Date.now().toString(36) + Math.random().toString(36).slice(2, 6), title: "", system: "", messages: [] };
  if (!used) chats.unshift(chat);
  open(chat);
}

function open(chat) {
  running?.abort();
  current = chat;
  store.write("current", chat.id);
  $("side").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
  show();
  $("ask").focus();
}

function keep() {
  store.write("chats", chats.filter((c) => c.messages.length || c.system || c === current));
}

function drop(chat) {
  if (!confirm("Delete “" + (chat.title || "this conversation") + "”?")) return;
  chats = chats.filter((c) => c !== chat);
  if (chat === current) chats.length ? open(chats[0]) : fresh();
  keep();
  side();
}

function side() {
  const row = (chat) => element("li", { "aria-current": chat === current },
    element("button", { class: "open", type: "button", onclick: () => open(chat) }, chat.title || "New conversation"),
    element("button", { class: "drop", type: "button", "aria-label": "Delete " + (chat.title || "new conversation"), onclick: () => drop(chat) }, "×"));
  $("list").replaceChildren(...chats.map(row));
  for (const li of $("list").children) if (li.getAttribute("aria-current") === "") li.setAttribute("aria-current", "true");
  $("title").textContent = current.title || "New conversation";
}

// ---- messages

function show() {
  side();
  const nodes = current.messages.map((m, i) => article(m, i));
  if (!nodes.length) nodes.push(element("p", { class: "empty" }, "Ask something. The conversation stays in this browser."));
  $("log").replaceChildren(...nodes);
  $("log").scrollTop = $("log").scrollHeight;
}

function article(message, index) {
  const node = element("article", { class: message.role, "aria-label": message.role === "user" ? "You" : "Model" });
  node.append(element("p", { class: "who" }, message.role === "user" ? "You" : "Model"));
  if (message.role === "assistant") {
    const thoughts = element("details", { class: "thoughts", hidden: true }, element("summary", {}, "Thoughts"), element("div"));
    node.append(thoughts);
  }
  node.append(element("div", { class: "text" }), element("div", { class: "foot" }));
  fill(node, message, index);
  return node;
}

function fill(node, message, index, busy = false) {
  node.classList.toggle("busy", busy);
  node.setAttribute("aria-busy", busy);
  const text = node.querySelector(".text");
  const foot = node.querySelector(".foot");
  if (message.role === "user") {
    text.textContent = message.content;
    foot.replaceChildren(button("Edit", () => edit(node, index)), copyButton(message.content));
    return;
  }
  const thoughts = node.querySelector(".thoughts");
  thoughts.hidden = !message.reasoning;
  thoughts.lastChild.textContent = message.reasoning ?? "";
  thoughts.firstChild.textContent = busy && !message.content ? "Thinking…" : "Thoughts";
  text.replaceChildren(...markdown(message.content), ...(busy && !message.content ? [element("p")] : []));
  if (message.error) text.append(element("p", { class: "error", role: "alert" }, message.error));
  foot.replaceChildren(...(message.speed ? [element("span", { class: "speed" }, message.speed)] : []));
  if (busy) return;
  foot.append(copyButton(message.content));
  if (index === current.messages.length - 1) foot.append(button("Regenerate", regenerate));
}

const button = (name, press) => element("button", { type: "button", onclick: press }, name);

function copyButton(text) {
  const copy = button("Copy", () => copied(copy, text));
  return copy;
}

function edit(node, index) {
  if (running) return;
  const area = element("textarea", { rows: 3, "aria-label": "Edit your message" });
  area.value = current.messages[index].content;
  const done = () => {
    if (!area.value.trim()) return;
    current.messages.length = index;
    ask(area.value);
  };
  area.addEventListener("keydown", (e) => {
    if (e.key === "Escape") show();
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
      e.preventDefault();
      done();
    }
  });
  node.querySelector(".text").replaceChildren(area);
  node.querySelector(".foot").replaceChildren(element("button", { type: "button", class: "save", onclick: done }, "Send again"), button("Cancel", show));
  area.style.height = Math.min(area.scrollHeight + 4, innerHeight * 0.4) + "px";
  area.focus();
}

function regenerate() {
  if (running || current.messages.at(-1)?.role !== "assistant") return;
  current.messages.pop();
  show();
  answer();
}

function ask(text) {
  current.messages.push({ role: "user", content: text });
  if (!current.title) current.title = text.trim().split("\n")[0].slice(0, 60);
  keep();
  show();
  answer();
}

// ---- answers

function body(chat) {
  const messages = chat.messages.filter((m) => !m.error || m.content).map(({ role, content, reasoning }) => ({ role, content, ...(reasoning ? { reasoning_content: reasoning } : {}) }));
  if (chat.system) messages.unshift({ role: "system", content: chat.system });
  const out = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const key of SAMPLING) if (options[key] !== undefined && options[key] !== "") out[key] = Number(options[key]);
  if (options.think === false) out.chat_template_kwargs = { enable_thinking: false };
  return out;
}

async function answer() {
  const chat = current;
  const request = body(chat);
  const message = { role: "assistant", content: "", reasoning: "" };
  const index = chat.messages.push(message) - 1;
  const node = article(message, index);
  const log = $("log");
  log.append(node);
  running = new AbortController();
  $("stop").hidden = false;
  $("send").hidden = true;
  say("The model answers.");
  const times = { start: performance.now(), first: 0, tokens: 0 };
  let drawn = false;
  let over = false;
  // Once a frame, however fast tokens come; it follows the end unless the person has scrolled away.
  const draw = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      if (over) return;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      message.speed = speed(times, message.usage, message.timings);
      fill(node, message, index, true);
      if (atEnd) log.scrollTop = log.scrollHeight;
    });
  };
  draw();
  try {
    const reply = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal: running.signal });
    if (!reply.ok) throw new Error(await reason(reply));
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message ?? String(event.error));
      const delta = event.choices?.[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) {
        times.first ||= performance.now();
        times.last = performance.now();
        times.tokens++;
      }
      message.content += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      if (event.choices?.[0]?.finish_reason === "length") message.cut = true;
      if (event.usage) message.usage = event.usage;
      if (event.timings) message.timings = event.timings;
      draw();
    }
    say("The answer is complete.");
  } catch (e) {
    if (e.name === "AbortError") say("Stopped.");
    else message.error = e instanceof TypeError ? "The server cannot be reached." : e.message;
  }
  over = true;
  running = null;
  $("stop").hidden = true;
  $("send").hidden = false;
  message.speed = speed(times, message.usage, message.timings) + (message.cut ? " · cut off at the most tokens" : "");
  delete message.usage;
  delete message.timings;
  if (!message.content && !message.reasoning && !message.error) chat.messages.splice(index, 1);
  keep();
  if (chat !== current) return;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  chat.messages[index] === message ? fill(node, message, index) : show();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function reason(reply) {
  if (reply.status === 401) return "The server wants an API key: see the settings.";
  try {
    const { error } = await reply.json();
    return error.message ?? error;
  } catch {
    return "The server answered with status " + reply.status + ".";
  }
}

// The events of a stream: lines may come in pieces.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n");
    held = parts.pop();
    for (const line of parts) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function speed(times, usage, timings) {
  const parts = [];
  const tokens = usage?.completion_tokens ?? times.tokens;
  if (!tokens) return "";
  const seconds = timings?.predicted_ms ? timings.predicted_ms / 1000 : (times.last - times.first) / 1000;
  const rate = timings?.predicted_per_second ?? (tokens - 1) / seconds;
  parts.push(tokens + (tokens === 1 ? " token" : " tokens"));
  if (tokens > 1 && Number.isFinite(rate) && rate > 0) parts.push(rate.toFixed(1) + " tokens/s");
  parts.push("first after " + ((times.first - times.start) / 1000).toFixed(2) + " s");
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (usage) parts.push(usage.prompt_tokens + " tokens of prompt" + (cached ? ", " + cached + " of them cached" : ""));
  return parts.join(" · ");
}

// ---- page

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-label", name === "dark" ? "Light colours" : "Dark colours");
}

function grow() {
  const area = $("ask");
  area.style.height = "auto";
  area.style.height = area.scrollHeight + 2 + "px";
}

function settings() {
  const form = $("settings").querySelector("form");
  form.elements.system.value = current.system;
  for (const key of [...SAMPLING, "key"]) form.elements[key].value = options[key] ?? "";
  form.elements.think.checked = options.think !== false;
  $("settings").showModal();
}

function settle() {
  const form = $("settings").querySelector("form");
  current.system = form.elements.system.value;
  for (const key of [...SAMPLING, "key"]) options[key] = form.elements[key].value.trim();
  options.think = form.elements.think.checked;
  store.write("options", options);
  keep();
  facts();
}

function save() {
  const text = current.messages.map((m) => `## ${m.role === "user" ? "You" : "Model"}\n\n${m.content}`).join("\n\n");
  const url = URL.createObjectURL(new Blob([text + "\n"], { type: "text/markdown" }));
  const link = element("a", { href: url, download: (current.title || "conversation").replace(/[^\w -]+/g, "") + ".md" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function facts() {
  try {
    const reply = await fetch("v1/models", { headers: headers() });
    choose((await reply.json()).data?.map((m) => m.id) ?? []);
    const experts = await fetch("v1/experts?model=" + encodeURIComponent(model), { headers: headers() });
    $("experts-toggle").hidden = !experts.ok;
    if (experts.ok && store.read("experts", false)) toggleExperts(true);
  } catch {
    say("The server cannot be reached.");
  }
}

// The name of the model, or a list to choose from where there are several.
function choose(names) {
  const wanted = store.read("model", "");
  model = names.includes(wanted) ? wanted : (names[0] ?? "");
  if (names.length < 2) return $("model").replaceChildren(model);
  const list = element("select", { "aria-label": "Model" });
  list.append(...names.map((name) => element("option", { value: name, selected: name === model }, name)));
  list.addEventListener("change", () => {
    model = list.value;
    store.write("model", model);
    facts();
  });
  $("model").replaceChildren(list);
}

function send(event) {
  event?.preventDefault();
  const text = $("ask").value;
  if (!text.trim() || running) return;
  $("ask").value = "";
  grow();
  ask(text);
}

$("form").addEventListener("submit", send);
$("ask").addEventListener("input", grow);
$("ask").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) send(e);
  if (e.key === "ArrowUp" && !e.target.value) {
    const last = current.messages.findLastIndex((m) => m.role === "user");
    if (last >= 0) {
      e.preventDefault();
      edit($("log").children[last], last);
    }
  }
});
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape" && running && !$("settings").open) running.abort();
  if (e.key.toLowerCase() === "k" && (e.ctrlKey || e.metaKey)) {
    e.preventDefault();
    fresh();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", fresh);
$("menu").addEventListener("click", () => {
  const on = $("side").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", on);
  if (on) $("new").focus();
});
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  store.write("theme", next);
  theme(next);
  poll();
});
$("settings-open").addEventListener("click", settings);
$("settings").addEventListener("close", settle);
$("export").addEventListener("click", save);
$("experts-toggle").addEventListener("click", () => toggleExperts($("experts").hidden));
document.addEventListener("visibilitychange", poll);

theme(store.read("theme", matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
current = chats.find((c) => c.id === store.read("current")) ?? null;
current ? show() : fresh();
facts();
