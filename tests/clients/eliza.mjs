// An elizaOS agent's two model calls, by its own core, templates, plugins and parser; prints one JSON line.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.cwd(), "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const loaded = await load("@elizaos/core");
const core = { ...loaded, ...loaded.default };
const plugin = await load(`@elizaos/plugin-${process.argv[2]}`);
const { AgentRuntime, ModelType, composePromptFromState, parseKeyValueXml } = core;
const character = { name: "Ada", bio: "An engineer", settings: {}, system: "" };
const runtime = new AgentRuntime({ character, adapter: undefined, logLevel: "fatal" });
runtime.getSetting = (name) => process.env[name] ?? null;
runtime.adapter = { log: async () => {}, getLogs: async () => [] };
const { models } = Object.values({ ...plugin, ...plugin.default }).find((value) => value?.models);
for (const [type, handler] of Object.entries(models)) runtime.registerModel(type, handler, "test", 1);

const providers = `# Conversation Messages
10:01 (3 minutes ago) [aaaaaaaa-0000-0000-0000-000000000001] Ann: Ada, is the build red?

# Available Actions
- **REPLY**: Say something
- **RUN_BUILD**: Start the build again
`;
const state = { values: { agentName: "Ada", providers }, data: {}, text: "" };
const ask = async (type, template) =>
  parseKeyValueXml(await runtime.useModel(type, { prompt: composePromptFromState({ state, template }) }));
const respond = await ask(ModelType.TEXT_SMALL, core.shouldRespondTemplate);
const plan = await ask(ModelType.TEXT_LARGE, core.messageHandlerTemplate);
console.log(JSON.stringify({ respond, plan }));
process.exit(0);
