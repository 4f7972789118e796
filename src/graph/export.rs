//! A graph as DOT (Graphviz) and as JSON, for a person to look at.

use super::{Graph, Kind};
use serde_json::{Value as Json, json};
use std::fmt::Write;

impl Graph {
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph lynx {\n  rankdir=TB; node [fontname=\"Helvetica\", fontsize=10];\n");
        for (i, n) in self.nodes.iter().enumerate() {
            let (label, style) = match &n.kind {
                Kind::Input(_) => ("input".to_string(), "shape=ellipse, color=\"#1f77b4\""),
                Kind::Variable(_, role) => (format!("{role:?}").to_lowercase(), "shape=box3d, color=\"#2ca02c\""),
                Kind::Constant(_) => ("constant".to_string(), "shape=ellipse, color=\"#7f7f7f\""),
                Kind::Op(op) => (op.name().to_string(), "shape=box, style=rounded"),
            };
            let types: Vec<_> = n.outputs.iter().map(|t| t.to_string()).collect();
            let _ = writeln!(dot, "  n{i} [label=\"{}\\n{label}\\n{}\", {style}];", escape(&n.name), types.join(" "));
            for (operand, v) in n.inputs.iter().enumerate() {
                let _ = writeln!(dot, "  n{} -> n{i} [taillabel=\"{}\", headlabel=\"{operand}\"];", v.node, v.port);
            }
        }
        for (name, v) in &self.outputs {
            let name = escape(name);
            let _ = writeln!(dot, "  \"out:{name}\" [shape=doublecircle];\n  n{} -> \"out:{name}\";", v.node);
        }
        for (var, new) in &self.updates {
            let _ = writeln!(dot, "  n{} -> n{} [style=dashed, label=\"update\"];", new.node, var.node);
        }
        dot.push_str("}\n");
        dot
    }

    pub fn to_json(&self) -> Json {
        let value = |v: &super::Value| json!([v.node, v.port]);
        let nodes: Vec<Json> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(i, n)| {
                let (kind, attributes) = match &n.kind {
                    Kind::Input(name) => ("input", name.clone()),
                    Kind::Variable(name, role) => ("variable", format!("{name} ({role:?})")),
                    Kind::Constant(_) => ("constant", String::new()),
                    Kind::Op(op) => (op.name(), format!("{op:?}")),
                };
                json!({
                    "id": i, "name": n.name, "kind": kind, "attributes": attributes, "outputs": n.outputs,
                    "inputs": n.inputs.iter().map(value).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "nodes": nodes,
            "outputs": self.outputs.iter().map(|(n, v)| json!({"name": n, "value": value(v)})).collect::<Vec<_>>(),
            "updates": self.updates.iter().map(|(a, b)| json!([value(a), value(b)])).collect::<Vec<_>>(),
        })
    }
}

fn escape(s: &str) -> String {
    s.replace('\\', "\\\\").replace('"', "\\\"")
}
