// The npm SDKs of Anthropic and OpenAI against the gateway; prints one JSON line.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.cwd(), "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const Anthropic = (await load("@anthropic-ai/sdk")).default;
const OpenAI = (await load("openai")).default;
const [base, key] = process.argv.slice(2);
const out = {};

const anthropic = new Anthropic({ baseURL: base, apiKey: key });
const ask = { model: "claude-x", max_tokens: 100, messages: [{ role: "user", content: "hi" }] };
out.whole = (await anthropic.messages.create(ask)).content[0].text;
out.streamed = await anthropic.messages.stream(ask).finalText();
const tool = (name) => ({ name, description: "d", input_schema: { type: "object", properties: {} } });
const coding = { ...ask, tools: [tool("Bash"), tool("Edit")], messages: [{ role: "user", content: "fix the code" }] };
const used = await anthropic.messages.stream(coding).finalMessage();
out.tool = used.content.find((block) => block.type === "tool_use");
const results = [{ type: "tool_result", tool_use_id: out.tool?.id, content: "ok" }];
out.after = (
  await anthropic.messages.create({
    ...coding,
    messages: [...coding.messages, { role: "assistant", content: used.content }, { role: "user", content: results }],
  })
).content[0].text;

const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: key });
const chat = { model: "gpt", messages: [{ role: "user", content: "hi" }] };
out.chat = (await openai.chat.completions.create(chat)).choices[0].message.content;
out.chatStreamed = "";
for await (const chunk of await openai.chat.completions.create({ ...chat, stream: true }))
  out.chatStreamed += chunk.choices[0]?.delta?.content ?? "";
console.log(JSON.stringify(out));
