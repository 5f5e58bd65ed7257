// The API, as openapi.json describes it: each operation, what it takes and what it answers.

import { request } from "./server_model.js";

const $ = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const { info, paths, components } = await (await request("openapi.json")).json();
const resolved = (schema) => (schema?.$ref ? components.schemas[schema.$ref.split("/").pop()] : schema ?? {});
const content = (part) => resolved(part?.content?.["application/json"]?.schema);

/** A schema's type in words, such as "string, list of integer or null". */
function type(schema) {
  if (schema.anyOf) {
    const [last, ...others] = schema.anyOf.map(type).reverse();
    return others.length ? `${others.reverse().join(", ")} or ${last}` : last;
  }
  if (schema.type === "array") return `list of ${type(resolved(schema.items))}`;
  if (schema.enum ?? schema.const) return [schema.enum ?? schema.const].flat().map((value) => JSON.stringify(value)).join(", ");
  return schema.$ref ? type(resolved(schema)) : schema.type ?? "any";
}

function table(title, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const fallback = schema.required?.includes(name) ? "needed" : "default" in field ? JSON.stringify(field.default) : "";
    const cells = [element("code", { textContent: name }), type(field), fallback, field.description ?? ""];
    return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
  });
  if (!rows.length) return "";
  const head = ["name", "type", "default", "meaning"].map((text) => element("th", { textContent: text, scope: "col" }));
  const made = element("table", {}, element("caption", { textContent: title }), element("tr", {}, ...head), ...rows);
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, made);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", title);
  return scroll;
}

for (const [path, operations] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const name = `${method.toUpperCase()} ${path}`;
    const body = table("Request", content(operation.requestBody));
    const answer = table("Answer", content(operation.responses["200"]));
    const about = element("p", { textContent: operation.description ?? operation.summary });
    $("operations").append(element("section", { className: "operation" }, element("h2", { textContent: name }), about, body, answer));
  }
}
$("status").textContent = `The API, version ${info.version}.`;
