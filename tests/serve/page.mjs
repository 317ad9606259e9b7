// Drives the chat page in Chromium, against a server of this file's own, or a real one.
//
//     npm install playwright-core            (and a Chromium: apt-get install chromium)
//     node tests/serve/page.mjs [--url http://127.0.0.1:8080] [--shots FOLDER] [--chromium PATH]
//
// With --url it asks a real model and checks what does not depend on its words.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const option = (name, otherwise) => {
  const at = process.argv.indexOf("--" + name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const { chromium } = createRequire(join(process.cwd(), "x.js"))("playwright-core");
const folder = join(dirname(fileURLToPath(import.meta.url)), "../../src/serve/page");

// The page and its policy as the program joins them.
function page() {
  const source = readFileSync(join(folder, "mod.rs"), "utf8");
  const body = source.slice(source.indexOf("concat!(") + 8, source.indexOf(");"));
  const parts = [...body.matchAll(/include_str!\("([^"]+)"\)|"((?:[^"\\]|\\.)*)"/g)];
  const policy = /POLICY: &str = ("(?:[^"\\]|\\[\s\S])*")/.exec(source)[1].replace(/\\\n\s*/g, "");
  return [parts.map((m) => (m[1] ? readFileSync(join(folder, m[1]), "utf8") : JSON.parse('"' + m[2] + '"'))).join(""), JSON.parse(policy)];
}

const ANSWER = `# Routing

A router picks **2 of 8** experts for *each* token; see [the paper](https://arxiv.org/abs/2101.03961) and <b>not HTML</b>.

1. Scores by \`softmax\`
2. The best two
   - their weights sum to 1
   - ties go to the lower

| expert | load |
|---|---|
| 3 | 12 % |
| 5 | 31 % |

\`\`\`rust
fn top(scores: &[f32]) -> usize {
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |b| b.0) // <script>alert(1)</script>
}
\`\`\`

> Balanced is not the same as good.
[click](javascript:alert(1)) <img src=x onerror=alert(1)>`;

let models = ["fake-8x1b"];
const seen = [];
let closed = 0;

function fake() {
  const [html, policy] = page();
  const server = createServer(async (request, reply) => {
    const json = (value, status = 200) => {
      reply.writeHead(status, { "Content-Type": "application/json" });
      reply.end(JSON.stringify(value));
    };
    if (request.url === "/") {
      reply.writeHead(200, { "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy });
      return reply.end(html);
    }
    if (request.url === "/v1/models") return json({ object: "list", data: models.map((id) => ({ id, object: "model" })) });
    if (request.url.startsWith("/v1/experts")) {
      const load = (l) => Array.from({ length: 32 }, (_, e) => Math.round(40 + 38 * Math.sin(e * (l + 2)) + (e === l ? 160 : 0)));
      return json({ object: "experts", experts: 32, used: 4, tokens: 512, layers: Array.from({ length: 24 }, (_, l) => ({ layer: l, load: load(l) })) });
    }
    let text = "";
    for await (const part of request) text += part;
    const body = JSON.parse(text);
    seen.push({ ...body, authorization: request.headers.authorization });
    const last = body.messages.at(-1).content;
    if (last === "refuse") return json({ error: { message: "the prompt does not fit: 9000 tokens of 4096", type: "invalid_request_error" } }, 400);
    reply.writeHead(200, { "Content-Type": "text/event-stream" });
    reply.on("close", () => reply.writableFinished || closed++);
    const event = (value) => reply.write("data: " + JSON.stringify(value) + "\n\n");
    const delta = (d, finish = null) => event({ id: "x", object: "chat.completion.chunk", choices: [{ index: 0, delta: d, finish_reason: finish }] });
    delta({ role: "assistant", content: "" });
    const endless = last === "endless";
    for (const word of "The user asks how routing works. I should be brief.".split(/(?<= )/)) delta({ reasoning_content: word });
    const said = endless ? "word ".repeat(2000) : last === "short" ? "Short " + seen.length : ANSWER;
    for (const piece of said.match(/[\s\S]{1,7}/g)) {
      if (reply.destroyed) return;
      delta({ content: piece });
      await new Promise((r) => setTimeout(r, endless ? 10 : 1));
    }
    delta({}, "stop");
    event({ choices: [], usage: { prompt_tokens: 120, completion_tokens: 210, total_tokens: 330, prompt_tokens_details: { cached_tokens: 96 } }, timings: { predicted_n: 210, predicted_ms: 2500, predicted_per_second: 83.6 } });
    reply.end("data: [DONE]\n\n");
  });
  return new Promise((r) => server.listen(0, "127.0.0.1", () => r(server)));
}

const given = option("url");
const server = given ? null : await fake();
const url = given ?? `http://127.0.0.1:${server.address().port}`;
const shots = option("shots");
const browser = await chromium.launch({ executablePath: option("chromium", "/usr/bin/chromium"), args: ["--no-sandbox"] });
const faults = [];
const checks = [];
const check = async (name, body) => {
  await body();
  checks.push(name);
  console.log("pass  " + name);
};

async function opened(settings) {
  const context = await browser.newContext(settings);
  const tab = await context.newPage();
  tab.on("pageerror", (e) => faults.push("page: " + e.message));
  tab.on("console", (m) => m.type() === "error" && !/status of 40\d/.test(m.text()) && faults.push("console: " + m.text()));
  tab.on("dialog", (d) => d.accept());
  tab.on("request", (r) => r.url().startsWith(url) || /^(data|blob):/.test(r.url()) || faults.push("asks elsewhere: " + r.url()));
  await tab.goto(url + "/");
  await tab.waitForFunction(() => document.getElementById("model").textContent !== "");
  return tab;
}

const ask = async (tab, text) => {
  await tab.fill("#ask", text);
  await tab.press("#ask", "Enter");
};
const idle = (tab) => tab.waitForFunction(() => document.getElementById("stop").hidden, null, { timeout: 120000 });
const shot = (tab, name) => (shots ? tab.screenshot({ path: join(shots, name + ".png") }) : null);
const last = (tab) => tab.locator("article.assistant").last();

const tab = await opened({ viewport: { width: 1180, height: 860 }, colorScheme: "dark", permissions: ["clipboard-read", "clipboard-write"] });

await check("an answer streams in, and its speed is shown", async () => {
  await ask(tab, "How does routing work?");
  await tab.waitForFunction(() => document.querySelector("article.busy .text")?.textContent.length > 5, null, { timeout: 120000 });
  await idle(tab);
  assert.match(await last(tab).locator(".speed").textContent(), /\d+ tokens? .*tokens\/s.*first after/);
});

if (!given) {
  await check("Markdown becomes elements, and HTML stays text", async () => {
    const text = last(tab).locator(".text");
    for (const tag of ["h1", "strong", "em", "ol > li", "ol ul > li", "table td", "blockquote", "pre code", "a[rel~=noopener]"]) {
      assert.ok((await text.locator(tag).count()) > 0, tag);
    }
    assert.equal(await text.locator("b, img, script, a[href^=javascript]").count(), 0);
    assert.match(await text.textContent(), /<b>not HTML<\/b>/);
    assert.match(await last(tab).locator(".speed").textContent(), /210 tokens · 83.6 tokens\/s .*96 of them cached/);
  });

  await check("code is copied", async () => {
    await last(tab).locator(".code .bar button").click();
    assert.match(await tab.evaluate(() => navigator.clipboard.readText()), /^fn top\(.*\n[\s\S]*\}$/);
  });

  await check("thoughts are folded, and open", async () => {
    const thoughts = last(tab).locator("details.thoughts");
    assert.equal(await thoughts.getAttribute("open"), null);
    await thoughts.locator("summary").click();
    assert.ok(await thoughts.getByText("I should be brief.").isVisible());
    await thoughts.locator("summary").click();
  });

  await check("the picture of experts is drawn and told in words", async () => {
    await tab.click("#experts-toggle");
    await tab.waitForFunction(() => document.getElementById("picture").width === 32);
    assert.match(await tab.textContent("#experts-words"), /24 layers of 32 experts, 4 a token.*Most loaded: expert \d+ of layer \d+/);
    const colors = await tab.evaluate(() => new Set(document.getElementById("picture").getContext("2d").getImageData(0, 0, 32, 24).data).size);
    assert.ok(colors > 20, String(colors));
  });
}
await shot(tab, "page-dark");

await check("stop ends an answer, and the server notices", async () => {
  await ask(tab, given ? "Count from 1 to 500." : "endless");
  await tab.waitForFunction(() => document.querySelector("article.busy .text")?.textContent.length > 20, null, { timeout: 120000 });
  await tab.press("body", "Escape");
  await idle(tab);
  const said = await last(tab).locator(".text").textContent();
  await new Promise((r) => setTimeout(r, 300));
  assert.equal(await last(tab).locator(".text").textContent(), said);
  if (!given) assert.equal(closed, 1);
});

await check("regenerate asks again without the old answer", async () => {
  await ask(tab, given ? "Say yes." : "short");
  await idle(tab);
  const before = await last(tab).locator(".text").textContent();
  await last(tab).getByRole("button", { name: "Regenerate" }).click();
  await idle(tab);
  if (given) return;
  assert.notEqual(await last(tab).locator(".text").textContent(), before);
  assert.deepEqual(seen.at(-1).messages, seen.at(-2).messages);
});

await check("an edited message drops what came after it", async () => {
  const n = await tab.locator("article").count();
  await tab.locator("article.user").nth(1).getByRole("button", { name: "Edit" }).click();
  await tab.locator("article textarea").fill(given ? "Say no." : "short");
  await tab.locator("article textarea").press("Enter");
  await idle(tab);
  assert.equal(await tab.locator("article").count(), 4);
  assert.ok(n > 4);
});

await check("system prompt, sampling and key go along", async () => {
  await tab.click("#settings-open");
  await tab.fill("[name=system]", "Be brief.");
  await tab.fill("[name=temperature]", "0.3");
  await tab.fill("[name=max_tokens]", "64");
  if (!given) await tab.fill("[name=key]", "secret");
  await tab.getByRole("button", { name: "Done" }).click();
  await ask(tab, "short");
  await idle(tab);
  if (given) return;
  const body = seen.at(-1);
  assert.deepEqual(body.messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual([body.temperature, body.max_tokens, body.authorization, "top_p" in body], [0.3, 64, "Bearer secret", false]);
});

await check("conversations are kept in the browser", async () => {
  const n = await tab.locator("article").count();
  await tab.press("body", "Control+k");
  assert.equal(await tab.locator("article").count(), 0);
  await ask(tab, "short");
  await idle(tab);
  await tab.reload();
  await tab.waitForSelector("article");
  assert.equal(await tab.locator("article").count(), 2);
  assert.equal(await tab.locator("#list li").count(), 2);
  await tab.locator("#list .open").last().click();
  assert.equal(await tab.locator("article").count(), n);
  await tab.locator("#list .drop").first().click();
  assert.equal(await tab.locator("#list li").count(), 1);
});

if (!given) {
  await check("a refusal is shown in words", async () => {
    await ask(tab, "refuse");
    await idle(tab);
    assert.match(await last(tab).locator("[role=alert]").textContent(), /9000 tokens of 4096/);
  });
}

await check("the keyboard reaches everything, and names are told", async () => {
  const unnamed = await tab.evaluate(() =>
    [...document.querySelectorAll("button, input, textarea")].filter((e) => e.offsetParent && !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML));
  assert.deepEqual(unnamed, []);
  await tab.focus("#ask");
  await tab.press("#ask", "ArrowUp");
  assert.ok(await tab.locator("article textarea").evaluate((e) => e === document.activeElement));
  await tab.press("article textarea", "Escape");
  for (const role of ["log", "status", "navigation", "main"]) assert.ok((await tab.getByRole(role).count()) > 0 || role === "navigation", role);
});

await check("light colours have contrast, too", async () => {
  await tab.click("#theme");
  const ratios = await tab.evaluate(() => {
    const style = getComputedStyle(document.documentElement);
    const light = (name) => {
      const [r, g, b] = style.getPropertyValue(name).trim().match(/\w\w/g).map((x) => parseInt(x, 16) / 255).map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const all = () => [["--fore", "--back"], ["--soft", "--back"], ["--soft", "--side"], ["--soft", "--code"], ["--on-accent", "--accent"], ["--accent", "--back"], ["--wrong", "--back"]].map(([a, b]) => [a, b, ratio(a, b)]);
    const one = all();
    document.documentElement.dataset.theme = "dark";
    const two = all();
    document.documentElement.dataset.theme = "light";
    return [...one, ...two];
  });
  for (const [a, b, ratio] of ratios) assert.ok(ratio >= 4.5, `${a} on ${b}: ${ratio.toFixed(2)}`);
  await tab.locator("#log").evaluate((e) => (e.scrollTop = 0));
  await shot(tab, "page-light");
});

if (!given) {
  await check("several models are chosen from a list, and the choice is kept", async () => {
    models = ["fake-8x1b", "other-30b"];
    await tab.reload();
    const list = tab.getByRole("combobox", { name: "Model" });
    assert.equal(await list.inputValue(), "fake-8x1b");
    await list.selectOption("other-30b");
    await ask(tab, "short");
    await idle(tab);
    assert.equal(seen.at(-1).model, "other-30b");
    await tab.reload();
    assert.equal(await tab.getByRole("combobox", { name: "Model" }).inputValue(), "other-30b");
    await shot(tab, "page-models");
    models = ["fake-8x1b"];
  });
}

const phone = await opened({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "light" });
await check("a phone's width holds everything", async () => {
  await ask(phone, given ? "Say yes." : "How does routing work?");
  await idle(phone);
  const wide = await phone.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide[0] <= wide[1], String(wide));
  await shot(phone, "page-phone");
  assert.ok(!(await phone.locator("#new").isVisible()));
  await phone.click("#menu");
  await phone.locator("#new").click({ timeout: 2000 });
  assert.equal(await phone.locator("article").count(), 0);
  const small = await phone.evaluate(() => [...document.querySelectorAll("header button, #send")].filter((e) => e.offsetParent && (e.offsetHeight < 40 || e.offsetWidth < 40)).length);
  assert.equal(small, 0, "targets for fingers");
});

await check("nothing failed, and nothing was asked of another server", async () => assert.deepEqual(faults, []));
await browser.close();
server?.close();
console.log(`${checks.length} checks passed`);
