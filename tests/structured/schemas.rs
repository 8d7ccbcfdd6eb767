//! Random schemas of what is supported, small enough for a model without sense to come to an end.

use serde_json::{Map, Value, json};

/// A step of SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

pub(crate) fn schema(rng: &mut Rng) -> Value {
    let mut root = object(rng, 3);
    if rng.below(4) == 0 {
        let shared = value(rng, 1);
        root["$defs"] = json!({"Shared": shared});
        root["properties"]["shared"] = json!({"$ref": "#/$defs/Shared"});
    }
    root
}

fn value(rng: &mut Rng, depth: u32) -> Value {
    let kinds = if depth == 0 { 9 } else { 14 };
    match rng.below(kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => {
            let low = rng.below(2000) as i64 - 1000;
            json!({"type": "integer", "minimum": low, "maximum": low + rng.below(5000) as i64})
        }
        3 => json!({"type": "number", "minimum": 0, "exclusiveMaximum": 1 + rng.below(9)}),
        4 => {
            let min = rng.below(4);
            json!({"type": "string", "minLength": min, "maxLength": min + rng.below(8)})
        }
        5 => {
            let patterns = ["^[a-z]{1,6}$", r"^\d{3}-\d{4}$", "^(ab|cd){1,4}[xyz]?$"];
            json!({"type": "string", "pattern": patterns[rng.below(3) as usize]})
        }
        6 => {
            let formats = ["date", "uuid", "ipv4", "time"];
            json!({"type": "string", "format": formats[rng.below(4) as usize]})
        }
        7 => json!({"enum": ["red", "green", 3, null, [1, "two"], "say \"é\""]}),
        8 => json!({"const": {"fixed": [true, 1.5]}}),
        9 => {
            let min = rng.below(3);
            json!({"type": "array", "items": value(rng, depth - 1), "minItems": min, "maxItems": min + rng.below(3)})
        }
        10 => json!({
            "type": "array", "prefixItems": [value(rng, 0), value(rng, 0)], "items": false, "minItems": 2,
        }),
        11 => json!({"anyOf": [value(rng, depth - 1), value(rng, depth - 1)]}),
        _ => object(rng, depth),
    }
}

fn object(rng: &mut Rng, depth: u32) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for i in 0..1 + rng.below(4) {
        let name = format!("{}{i}", ["name", "é", "a b", "x\"y"][rng.below(4) as usize]);
        if rng.coin() {
            required.push(Value::from(name.clone()));
        }
        properties.insert(name, value(rng, depth - 1));
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}
