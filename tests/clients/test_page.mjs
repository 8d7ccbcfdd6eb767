// The page in headless Chromium: `test_page.mjs URL KEY`, with two more servers in the environment: KEYED takes only KEY,
// PACED computes as many steps as are printed here ("allow N", "resume").

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, key] = process.argv.slice(2);
const { KEYED: keyed, PACED: paced } = process.env;
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const args = [...quiet, "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args });

/** A page that loads nothing from elsewhere, and complains of nothing but refused requests. */
async function open(base, options = {}) {
  const page = await browser.newPage(options);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (line) => line.type() === "error" && !/status of 4\d\d/.test(line.text()) && complaints.push(line.text()));
  page.on("request", (request) => new URL(request.url()).origin === base || complaints.push(request.url()));
  await page.goto(base);
  return { page, text: (id) => page.locator(`#${id}`).textContent(), close: () => (assert.deepEqual(complaints, []), page.close()) };
}

const say = (page, text) => page.locator("#prompt").fill(text).then(() => page.keyboard.press("Enter"));
const answer = (page) => page.locator(".answer").last();
const finished = (page) => page.locator("#send").waitFor();

async function chat(base, body) {
  const headers = { "content-type": "application/json" };
  return (await fetch(`${base}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** Answers with these deltas instead of the server. */
function script(page, deltas, end = "data: [DONE]\n\n") {
  const chunks = deltas.map((delta) => ({ choices: [{ index: 0, delta, finish_reason: null }] }));
  const body = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("") + end;
  return page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
}

/** WCAG's contrast of a text with what is behind it. */
const contrast = (page, selector) =>
  page.locator(selector).first().evaluate((element) => {
    const light = (color) => {
      const linear = color.match(/[\d.]+/g).slice(0, 3).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const ground = light(getComputedStyle(behind).backgroundColor);
    const ink = light(getComputedStyle(element).color);
    return { ground, ratio: (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05) };
  });

const tests = {
  async conversation() {
    const { page, text, close } = await open(url);
    await page.getByText("tests/qwen3moe").waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Max tokens").fill("12");
    await page.getByLabel("System prompt").fill("Be brief.");
    await page.keyboard.press("Tab");
    await page.locator("#prompt").pressSequentially("Hello");
    await page.keyboard.press("Shift+Enter");
    await page.locator("#prompt").pressSequentially("there");
    assert.equal(await page.locator(".user").count(), 0);
    await page.keyboard.press("Enter");
    await finished(page);
    assert.equal(await text("prompt"), "");
    assert.equal(await page.locator(".user").textContent(), "Hello\nthere");

    const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hello\nthere" }];
    const wanted = await chat(url, { messages, temperature: 0, max_tokens: 12 });
    const { content } = wanted.choices[0].message;
    assert.equal((await answer(page).locator(".text").textContent()).trim(), content.trim());
    const { prompt_tokens: prompt, completion_tokens: output } = wanted.usage;
    const figures = await answer(page).locator(".figures").textContent();
    assert.ok(figures.startsWith(`${prompt} tokens in`) && figures.includes(`· ${output} out ·`), figures);
    assert.match(figures, /[\d.,]+ tokens\/s · first after [\d.]+ s · 0\.0\d+ USD/);

    // What was said is said again.
    await say(page, "And?");
    await finished(page);
    messages.push({ role: "assistant", content }, { role: "user", content: "And?" });
    const next = await chat(url, { messages, temperature: 0, max_tokens: 12 });
    assert.equal((await answer(page).locator(".text").textContent()).trim(), next.choices[0].message.content.trim());

    // A reload of the tab loses nothing of it.
    await page.reload();
    await page.getByText("tests/qwen3moe").waitFor();
    const said = messages.filter(({ role }) => role === "user").map((message) => message.content);
    assert.deepEqual(await page.getByRole("article", { name: "You" }).allTextContents(), said);
    assert.equal((await answer(page).locator(".text").textContent()).trim(), next.choices[0].message.content.trim());

    // A refusal in the server's words. What was asked comes back, and is no part of the conversation.
    await page.getByLabel("Temperature").fill("9");
    const asked = page.waitForRequest("**/v1/chat/completions");
    await say(page, "Too hot");
    const { messages: sent } = (await asked).postDataJSON();
    assert.deepEqual(sent.filter(({ role }) => role === "user").map((message) => message.content), [...said, "Too hot"]);
    await finished(page);
    const refusal = (await chat(url, { messages, temperature: 9 })).error.message;
    assert.equal(await answer(page).locator("[role=alert]").textContent(), refusal);
    assert.equal(await page.locator("#prompt").inputValue(), "Too hot");
    await page.getByRole("button", { name: "New chat" }).click();
    assert.equal(await page.locator("#conversation > *").count(), 0);
    await page.reload();
    assert.equal(await page.locator("#conversation > *").count(), 0);
    await close();
  },

  async live() {
    const { page, close } = await open(url);
    await page.waitForFunction(() => /^\d+%$/.test(document.getElementById("idle").textContent));
    const shown = await page.locator("#live").evaluate((live) =>
      Object.fromEntries([...live.querySelectorAll("[id]")].map(({ id, textContent }) => [id, textContent])));
    assert.deepEqual([shown.running, shown.queued, shown.kv, shown.outputs, shown.unit], ["0", "0", "0%", "0", "USD"]);
    for (const id of ["input-marginal", "input-loaded", "output-marginal", "output-loaded"]) assert.ok(Number(shown[id].replaceAll(",", "")) > 0, id);
    assert.equal(await page.locator("#state").textContent(), "ready");
    await close();
  },

  async stopping() {
    const { page, close } = await open(paced);
    // The likeliest tokens do not end the answer within 8 steps, which others may.
    await page.getByLabel("Temperature").fill("0");
    for (const stop of [() => page.keyboard.press("Escape"), () => page.getByRole("button", { name: "Stop" }).click()]) {
      await page.getByLabel("Max tokens").fill("1500");
      await say(page, "Count");
      // Before that the last answer is still the one before.
      await page.getByRole("button", { name: "Stop" }).waitFor();
      console.log("allow 8");
      // It streams: there is text, and the model waits.
      await answer(page).locator(".text:not(:empty)").waitFor();
      await stop();
      await finished(page);
      assert.match(await answer(page).locator(".figures").textContent(), /stopped$/);
      assert.equal(await page.locator("[role=log] [role=alert]").count(), 0);
    }
    console.log("resume");
    await page.getByLabel("Max tokens").fill("3");
    await say(page, "And now?");
    await finished(page);
    assert.match(await answer(page).locator(".figures").textContent(), /out · .* first after/);
    await close();
  },

  async keys() {
    const { page, close } = await open(keyed);
    const field = page.getByLabel("API key");
    await field.waitFor();
    assert.equal(await page.locator("#why").textContent(), "");
    await field.fill("sk-wrong");
    await page.keyboard.press("Enter");
    await page.locator("#access").getByText("The API key is not known to this server").waitFor();
    await field.fill(key);
    await page.keyboard.press("Enter");
    await field.waitFor({ state: "hidden" });
    await say(page, "Hi");
    await finished(page);
    assert.equal(await page.locator("[role=log] [role=alert]").count(), 0);
    assert.deepEqual(await page.evaluate(() => [sessionStorage.getItem("api-key"), { ...localStorage }, document.cookie]), [key, {}, ""]);
    await close();
  },

  async hostile_text_thoughts_and_tools() {
    const { page, close } = await open(url);
    const attack = '<img src=x onerror="window.hacked = true"><script>window.hacked = true</script>';
    const code = ["\n\nLook:\n\n`", "``h", "tml\n", attack, "\n``", "`\nDone ", "```` no fence\n", "`last`"];
    const call = (more) => ({ tool_calls: [{ index: 0, ...more }] });
    await script(page, [
      { role: "assistant", content: "" },
      { reasoning_content: "Think " },
      { reasoning_content: attack },
      ...code.map((content) => ({ content })),
      call({ id: "call_1", type: "function", function: { name: "weather", arguments: "" } }),
      call({ function: { arguments: '{"city":' } }),
      call({ function: { arguments: '"Oslo"}' } }),
    ]);
    await say(page, attack);
    await finished(page);
    const prose = await answer(page).locator(":scope > p.text, :scope > pre").allTextContents();
    assert.deepEqual(prose, ["Look:", attack, "Done ```` no fence\n`last`"]);
    const thoughts = answer(page).locator(".reasoning");
    assert.equal(await thoughts.locator("p").textContent(), `Think ${attack}`);
    assert.ok(!(await thoughts.locator("p").isVisible()), "folded once the answer begins");
    await thoughts.locator("summary").focus();
    await page.keyboard.press("Enter");
    assert.ok(await thoughts.locator("p").isVisible());
    assert.equal(await answer(page).locator(".call").innerText(), 'Calls weather\n{"city":"Oslo"}');
    assert.equal(await page.locator("#conversation :is(img, script)").count(), 0);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    await close();
  },

  async broken_answers() {
    const { page, close } = await open(url);
    const ends = [['data: {"error": {"message": "The engine failed"}}\n\n', "The engine failed"], ["", "The answer broke off"]];
    for (const [end, message] of ends) {
      await script(page, [{ content: "Half" }], end);
      await say(page, "Hi");
      await finished(page);
      assert.equal(await answer(page).locator("[role=alert]").textContent(), message);
      assert.equal(await answer(page).locator(".text").textContent(), "Half");
    }
    await close();
  },

  async widths_and_colors() {
    for (const [colorScheme, width] of [["light", 320], ["dark", 360], ["dark", 1280], ["light", 1280]]) {
      const { page, close } = await open(url, { colorScheme, viewport: { width, height: 700 } });
      await script(page, [{ content: `${"long".repeat(100)}\n\`\`\`\n${"code ".repeat(100)}\n\`\`\`\n` }]);
      await say(page, "word".repeat(100));
      await finished(page);
      if (width < 1000) await page.locator("#settings summary").click();
      const scrolls = ["html", "#conversation", "aside"].map((selector) =>
        page.locator(selector).evaluate((element) => element.scrollWidth - element.clientWidth));
      assert.deepEqual(await Promise.all(scrolls), [0, 0, 0], `${width}`);
      assert.ok(await page.locator("#send").isVisible());
      for (const selector of ["body", ".user", ".figures", "#send", "#settings .note", "header a"]) {
        const { ground, ratio } = await contrast(page, selector);
        assert.ok(ratio >= 4.5, `${colorScheme} ${selector}: ${ratio}`);
        if (selector === "body") assert.equal(ground > 0.5, colorScheme === "light");
      }
      await close();
    }
  },
};

try {
  for (const [name, test] of Object.entries(tests)) {
    await test();
    console.log(`${name}: good`);
  }
  console.log("all good");
} finally {
  await browser.close();
}
