// Markdown as models write it, made elements and never HTML: what a model says cannot become a script.
"use strict";

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// The first of these that occurs in a line, then the rest of the line.
const INLINE = [
  [/(`+)(.+?)\1(?!`)/, (m) => element("code", {}, m[2].replace(/^ (.*) $/, "$1"))],
  [/\*\*(?=\S)(.+?)\*\*/, (m) => element("strong", {}, ...inline(m[1]))],
  [/__(?=\S)(.+?)__(?!\w)/, (m) => element("strong", {}, ...inline(m[1]))],
  [/~~(?=\S)(.+?)~~/, (m) => element("s", {}, ...inline(m[1]))],
  [/\*(?=[^\s*])([^*]+?)\*/, (m) => element("em", {}, ...inline(m[1]))],
  [/(?<!\w)_(?=[^\s_])([^_]+?)_(?!\w)/, (m) => element("em", {}, ...inline(m[1]))],
  [/!?\[([^\]]*)\]\((\S+?)(?: "[^"]*")?\)/, (m) => link(m[2], m[1] || m[2])],
  [/https?:\/\/[^\s<>()]+[^\s<>().,;:!?'"]/, (m) => link(m[0], m[0])],
];

function link(target, text) {
  if (!/^(https?:|mailto:)/i.test(target)) return document.createTextNode(text);
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, text);
}

function inline(text) {
  let best = null;
  for (const [pattern, make] of INLINE) {
    const m = pattern.exec(text);
    if (m && (!best || m.index < best.m.index)) best = { m, make };
  }
  if (!best) return text ? [text] : [];
  const { m, make } = best;
  return [...(m.index ? [text.slice(0, m.index)] : []), make(m), ...inline(text.slice(m.index + m[0].length))];
}

function lines(text) {
  const out = [];
  text.split("\n").forEach((line, i) => {
    if (i) out.push(element("br"));
    out.push(...inline(line));
  });
  return out;
}

function code(language, text) {
  const copy = element("button", { type: "button", onclick: () => copied(copy, text) }, "Copy");
  const bar = element("div", { class: "bar" }, element("span", {}, language || "text"), copy);
  return element("div", { class: "code" }, bar, element("pre", { tabindex: "0" }, element("code", {}, text)));
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that do not come over HTTPS have no clipboard: the old way.
    const area = element("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1500);
}

function cells(row) {
  return row.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((c) => c.trim());
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

// The elements of a text's blocks.
function markdown(text) {
  const rows = text.replace(/\r/g, "").split("\n");
  const out = [];
  let i = 0;
  const paragraph = [];
  const flush = () => {
    if (paragraph.length) out.push(element("p", {}, ...lines(paragraph.splice(0).join("\n"))));
  };
  while (i < rows.length) {
    const row = rows[i];
    const fence = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(row);
    const heading = /^(#{1,6})\s+(.*?)#*\s*$/.exec(row);
    if (fence) {
      flush();
      const body = [];
      for (i++; i < rows.length && !rows[i].trim().startsWith(fence[1]); i++) body.push(rows[i]);
      out.push(code(fence[2], body.join("\n")));
    } else if (heading) {
      flush();
      out.push(element("h" + Math.min(4, heading[1].length), {}, ...inline(heading[2])));
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(row)) {
      flush();
      out.push(element("hr"));
    } else if (/^\s*>/.test(row)) {
      flush();
      const quoted = [];
      for (; i < rows.length && /^\s*>/.test(rows[i]); i++) quoted.push(rows[i].replace(/^\s*> ?/, ""));
      out.push(element("blockquote", {}, ...markdown(quoted.join("\n"))));
      continue;
    } else if (ITEM.test(row)) {
      flush();
      const [list, next] = listOf(rows, i);
      out.push(list);
      i = next;
      continue;
    } else if (row.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(rows[i + 1] ?? "") && (rows[i + 1] ?? "").includes("|")) {
      flush();
      const head = element("tr", {}, ...cells(row).map((c) => element("th", { scope: "col" }, ...inline(c))));
      const table = element("table", { tabindex: "0" }, element("thead", {}, head));
      const body = element("tbody");
      for (i += 2; i < rows.length && rows[i].includes("|"); i++) {
        body.append(element("tr", {}, ...cells(rows[i]).map((c) => element("td", {}, ...inline(c)))));
      }
      table.append(body);
      out.push(table);
      continue;
    } else if (!row.trim()) {
      flush();
    } else {
      paragraph.push(row);
    }
    i++;
  }
  flush();
  return out;
}

// A list that begins at a row, and the row behind it.
function listOf(rows, start) {
  const first = ITEM.exec(rows[start]);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const list = element(ordered ? "ol" : "ul", { start: ordered && parseInt(first[2]) !== 1 ? parseInt(first[2]) : false });
  let i = start;
  while (i < rows.length) {
    const m = ITEM.exec(rows[i]);
    if (!m || m[1].length > indent + 1 || m[1].length < indent || /\d/.test(m[2]) !== ordered) break;
    const body = [m[3]];
    const margin = rows[i].length - m[3].length;
    for (i++; i < rows.length; i++) {
      const blank = !rows[i].trim();
      const deeper = /^\s*/.exec(rows[i])[0].length > indent + 1;
      if (blank ? !/^\s{2,}\S/.test(rows[i + 1] ?? "") : !deeper) break;
      body.push(rows[i].slice(Math.min(margin, /^\s*/.exec(rows[i])[0].length)));
    }
    const inner = markdown(body.join("\n"));
    // A single paragraph needs no margins of its own.
    const flat = inner[0]?.tagName === "P" ? [...inner[0].childNodes, ...inner.slice(1)] : inner;
    list.append(element("li", {}, ...flat));
    while (i < rows.length && !rows[i].trim() && ITEM.test(rows[i + 1] ?? "")) i++;
  }
  return [list, i];
}
