//! What schemas make the library do before it counts: copies of alternatives, and comparisons of each with each.
//!
//! Where several schemas hold at one place (`allOf`, a reference or alternatives beside other keywords) the library multiplies their
//! alternatives out and copies what each is made of. Here that is reckoned, never done: with products that saturate, from above.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ptr;

use serde_json::{Map, Value};

use super::schema::{DEPTH_MAX, Holds, holds, place};

/// Bytes of schemas that are copied.
const COPIED_MAX: u64 = 8 << 20;

/// Alternatives of `oneOf`s that are compared, each with each, times the names that both require.
const PAIRS_MAX: u64 = 1 << 26;

/// `patternProperties` of an object: an automaton is made of each two.
const PATTERNS_MAX: u64 = 32;

/// Pairs of them.
const PATTERN_PAIRS_MAX: u64 = 4096;

/// Schemas that are looked at to reckon all this.
const STEPS_MAX: u64 = 100_000;

/// Taken by all schemas of a grammar so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    copied: u64,
    pairs: u64,
    pattern_pairs: u64,
    steps: u64,
}

impl Work {
    fn check(&self) -> Result<(), &'static str> {
        match () {
            () if self.copied > COPIED_MAX => Err("combine too many alternatives"),
            () if self.pairs > PAIRS_MAX => {
                Err("have too many alternatives in 'oneOf' that must be told apart")
            }
            () if self.pattern_pairs > PATTERN_PAIRS_MAX => Err("have too many 'patternProperties'"),
            () if self.steps > STEPS_MAX => Err("are combined in too many ways"),
            () => Ok(()),
        }
    }
}

/// Schemas that hold at one place.
#[derive(Clone)]
enum Side<'a> {
    One(&'a Map<String, Value>),
    All(Vec<Side<'a>>),
    Any(Vec<Side<'a>>),
}

/// What the schemas at one place amount to.
#[derive(Clone, Copy)]
struct Meet {
    /// Alternatives.
    ways: u64,
    /// Of all alternatives.
    bytes: u64,
    /// Of all alternatives, what comparing one with another takes.
    weight: u64,
    patterns: u64,
    /// How many are combined.
    sides: u64,
    /// The alternatives must be told apart.
    apart: bool,
}

impl Meet {
    const NOTHING: Self = Self { ways: 1, bytes: 0, weight: 0, patterns: 0, sides: 0, apart: false };

    fn constants<'a>(values: impl IntoIterator<Item = &'a Value>) -> Self {
        let (ways, bytes) = values.into_iter().fold((0, 0), |(n, all), value| (n + 1, all + bytes(value)));
        Self { ways, bytes, weight: ways, sides: 1, ..Self::NOTHING }
    }

    fn and(self, other: Self) -> Self {
        let product =
            |a: u64, b: u64| a.saturating_mul(other.ways).saturating_add(b.saturating_mul(self.ways));
        Self {
            ways: self.ways.saturating_mul(other.ways),
            bytes: product(self.bytes, other.bytes),
            weight: product(self.weight, other.weight),
            patterns: self.patterns.saturating_add(other.patterns),
            sides: self.sides.saturating_add(other.sides),
            apart: self.apart || other.apart,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            ways: self.ways.saturating_add(other.ways),
            bytes: self.bytes.saturating_add(other.bytes),
            weight: self.weight.saturating_add(other.weight),
            patterns: self.patterns.max(other.patterns),
            sides: 1,
            apart: self.apart || other.apart,
        }
    }

    fn any(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self { ways: 0, sides: 1, ..Self::NOTHING }, Self::or)
    }
}

/// Children of a place: properties by name, then all others and all items under names that no property has.
type Children<'a> = BTreeMap<Child<'a>, Side<'a>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Child<'a> {
    Property(&'a str),
    OtherProperties,
    Items,
}

/// Reckons what the places of one document take.
pub(super) struct Reckoner<'a> {
    root: &'a Value,
    work: Work,
    met: HashMap<*const Map<String, Value>, Meet>,
    /// Somewhere several schemas hold at one place.
    pub(super) combines: bool,
}

impl<'a> Reckoner<'a> {
    /// With what was taken before.
    pub(super) fn new(root: &'a Value, work: Work) -> Self {
        Self { root, work, met: HashMap::new(), combines: false }
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// Adds what the schemas at one place take; the error says what they do.
    pub(super) fn add(&mut self, schema: &'a Map<String, Value>) -> Result<(), &'static str> {
        let compared = ["oneOf", "patternProperties"].iter().any(|keyword| schema.contains_key(*keyword));
        if compared || is_combined(schema) { self.take(&Side::One(schema), 0) } else { Ok(()) }
    }

    fn take(&mut self, side: &Side<'a>, depth: usize) -> Result<(), &'static str> {
        let meet = self.meet(side, depth)?;
        if meet.apart {
            self.work.pairs = self.work.pairs.saturating_add(meet.ways.saturating_mul(meet.weight));
        }
        if meet.patterns > PATTERNS_MAX {
            return Err("have more than 32 'patternProperties'");
        }
        let pairs = meet.patterns * meet.patterns.saturating_sub(1) / 2;
        self.work.pattern_pairs += pairs.saturating_mul(meet.sides);
        if meet.sides > 1 {
            self.combines = true;
            self.work.copied = self.work.copied.saturating_add(meet.bytes.saturating_mul(meet.sides));
            self.work.check()?;
            for child in self.children(side, depth)?.into_values() {
                // What stands alone is reckoned where it stands.
                if matches!(&child, Side::All(sides) if sides.len() > 1) {
                    self.take(&child, depth + 1)?;
                }
            }
        }
        self.work.check()
    }

    fn step(&mut self, depth: usize) -> Result<(), &'static str> {
        self.work.steps += 1;
        self.work.check()?;
        if depth > 2 * DEPTH_MAX { Err("are combined in circles") } else { Ok(()) }
    }

    fn meet(&mut self, side: &Side<'a>, depth: usize) -> Result<Meet, &'static str> {
        self.step(depth)?;
        match side {
            Side::One(schema) => self.meet_one(schema, depth),
            Side::All(sides) => {
                sides.iter().try_fold(Meet::NOTHING, |meet, side| Ok(meet.and(self.meet(side, depth + 1)?)))
            }
            Side::Any(sides) => {
                let all: Result<Vec<_>, _> = sides.iter().map(|side| self.meet(side, depth + 1)).collect();
                Ok(Meet::any(all?))
            }
        }
    }

    fn meet_one(&mut self, schema: &'a Map<String, Value>, depth: usize) -> Result<Meet, &'static str> {
        if let Some(known) = self.met.get(&ptr::from_ref(schema)) {
            return Ok(*known);
        }
        // Who refers back to it meets nothing new.
        self.met.insert(ptr::from_ref(schema), Meet::NOTHING);
        let mut meet = own(schema);
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            meet = meet.and(Meet::constants(values));
        }
        if let Some(value) = schema.get("const") {
            meet = meet.and(Meet::constants([value]));
        }
        for part in self.parts(schema) {
            meet = meet.and(self.meet(&part, depth + 1)?);
        }
        meet.apart |= schema.contains_key("oneOf");
        self.met.insert(ptr::from_ref(schema), meet);
        Ok(meet)
    }

    /// What holds at the same place.
    fn parts(&self, schema: &'a Map<String, Value>) -> Vec<Side<'a>> {
        let members = |keyword: &str| {
            let list = schema.get(keyword).and_then(Value::as_array);
            list.map(|list| list.iter().filter_map(Value::as_object).map(Side::One).collect::<Vec<_>>())
        };
        let mut parts = members("allOf").unwrap_or_default();
        parts.extend(["anyOf", "oneOf"].into_iter().filter_map(members).map(Side::Any));
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|to| place(self.root, to));
        parts.extend(target.and_then(Value::as_object).map(Side::One));
        parts
    }

    fn children(&mut self, side: &Side<'a>, depth: usize) -> Result<Children<'a>, &'static str> {
        self.step(depth)?;
        match side {
            Side::One(schema) => {
                let mut all = vec![own_children(schema)];
                for part in self.parts(schema) {
                    all.push(self.children(&part, depth + 1)?);
                }
                Ok(merged(all, Side::All))
            }
            Side::All(sides) | Side::Any(sides) => {
                let join = if matches!(side, Side::All(_)) { Side::All } else { Side::Any };
                let all: Result<Vec<_>, _> =
                    sides.iter().map(|side| self.children(side, depth + 1)).collect();
                Ok(merged(all?, join))
            }
        }
    }
}

/// Whether more than one schema holds at its place.
fn is_combined(schema: &Map<String, Value>) -> bool {
    let members = schema.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
    let others = ["$ref", "anyOf", "oneOf", "enum", "const"].iter().filter(|key| schema.contains_key(**key));
    usize::from(schema.keys().any(|keyword| is_own(keyword))) + members + others.count() > 1
}

fn bytes(value: &Value) -> u64 {
    value.to_string().len() as u64
}

/// Whether a keyword holds neither other schemas for the same place, nor places to refer to, nor words.
fn is_own(keyword: &str) -> bool {
    let elsewhere =
        ["$ref", "allOf", "anyOf", "oneOf", "enum", "const", "$defs", "definitions", "$schema", "$id", "id"];
    !elsewhere.contains(&keyword) && !matches!(holds(keyword), Some(Holds::Words))
}

fn own(schema: &Map<String, Value>) -> Meet {
    let own: Vec<_> = schema.iter().filter(|(keyword, _)| is_own(keyword)).collect();
    let count = |keyword: &str, of: fn(&Value) -> usize| schema.get(keyword).map_or(0, of) as u64;
    let required = count("required", |list| list.as_array().map_or(0, Vec::len));
    let patterns = count("patternProperties", |all| all.as_object().map_or(0, Map::len));
    Meet {
        bytes: own.iter().map(|(keyword, value)| keyword.len() as u64 + bytes(value)).sum(),
        weight: (1 + required) * (1 + patterns),
        patterns,
        sides: u64::from(!own.is_empty()),
        ..Meet::NOTHING
    }
}

fn own_children(schema: &Map<String, Value>) -> Children<'_> {
    let mut children = Children::new();
    let of = |keyword: &str| schema.get(keyword).and_then(Value::as_object);
    for (name, value) in of("properties").into_iter().flatten() {
        children.extend(value.as_object().map(|schema| (Child::Property(name), Side::One(schema))));
    }
    let others = of("additionalProperties").into_iter();
    let others =
        others.chain(of("patternProperties").into_iter().flat_map(Map::values).filter_map(Value::as_object));
    let items = ["items", "additionalItems", "prefixItems"].into_iter().filter_map(|key| schema.get(key));
    let items = items.flat_map(|value| match value {
        Value::Array(list) => list.iter().filter_map(Value::as_object).collect(),
        value => value.as_object().into_iter().collect::<Vec<_>>(),
    });
    let others: Vec<_> = others.map(Side::One).collect();
    let items: Vec<_> = items.map(Side::One).collect();
    for (child, sides) in [(Child::OtherProperties, others), (Child::Items, items)] {
        if !sides.is_empty() {
            children.insert(child, Side::Any(sides));
        }
    }
    children
}

/// What holds at each child of several sides; where one does not name a property, what it says of all others does.
fn merged<'a>(all: Vec<Children<'a>>, join: fn(Vec<Side<'a>>) -> Side<'a>) -> Children<'a> {
    let mut merged = Children::new();
    let named: BTreeSet<Child<'a>> = all.iter().flat_map(|c| c.keys().copied()).collect();
    for child in named {
        let of = |children: &Children<'a>| {
            let other = || children.get(&Child::OtherProperties).filter(|_| child != Child::Items);
            children.get(&child).or_else(other).cloned()
        };
        let mut sides: Vec<Side<'a>> = all.iter().filter_map(of).collect();
        let side = if sides.len() == 1 { sides.remove(0) } else { join(sides) };
        merged.insert(child, side);
    }
    merged
}
