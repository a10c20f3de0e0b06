// A whole elizaOS agent (runtime, database, bootstrap's providers and actions, message service) that handles messages of
// a group; its models are asked through the base URL in the environment. Prints one JSON line.
// It is run from a folder that has the packages.
const load = async (name) => {
  const loaded = await import(name);
  return { ...loaded, ...loaded.default };
};
const [name, ...texts] = process.argv.slice(2);
const { AgentRuntime, ChannelType, createUniqueUuid, stringToUuid } = await load("@elizaos/core");
const pluginOf = (loaded) => loaded.default ?? Object.values(loaded).find((value) => value?.name && value?.models);
const sql = (await load("@elizaos/plugin-sql")).plugin;
const plugins = [
  sql,
  (await load("@elizaos/plugin-bootstrap")).bootstrapPlugin,
  pluginOf(await load(`@elizaos/plugin-${name}`)),
];
const character = { name: "Ada", bio: ["An engineer"], system: "You are Ada.", settings: {}, plugins: [] };
const runtime = new AgentRuntime({ agentId: stringToUuid("ada"), character, plugins });
await runtime.registerPlugin(sql);
await runtime.adapter.init();
await runtime.adapter.runPluginMigrations([{ name: sql.name, schema: sql.schema }], { verbose: false });
await runtime.initialize();
const ids = { entityId: stringToUuid("ann"), roomId: stringToUuid("room"), worldId: stringToUuid("world") };
await runtime.ensureConnection({
  ...ids,
  userName: "Ann",
  name: "Ann",
  source: "test",
  type: ChannelType.GROUP,
  channelId: "room",
  messageServerId: stringToUuid("server"),
  worldName: "world",
});
const out = [];
for (const text of texts) {
  const said = [];
  const message = {
    id: createUniqueUuid(runtime, text),
    agentId: runtime.agentId,
    ...ids,
    createdAt: Date.now(),
    content: { text, source: "test", channelType: ChannelType.GROUP },
  };
  const result = await runtime.messageService.handleMessage(runtime, message, async (content) => {
    said.push(content.text);
    return [];
  });
  out.push({ responded: result.didRespond, said });
}
console.log(JSON.stringify(out));
process.exit(0);
