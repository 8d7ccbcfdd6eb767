//! The operations with their inputs: made-up numbers, the same on every run.

use super::{BLOCK, Op, Prepared, device_error};
use crate::backend::{
    Activation, AttendSpec, Backend, BackendError, Batch, ExpertGroups, Gated, Gating, GroupScore, Rope,
    RopeStyle, RouteSpec, Router,
};
use crate::gpu::error::GpuError;
use crate::kv::{GroupLayout, KvStore, PageType};
use crate::quant::{FORMATS, GgmlType};
use crate::reference::ReferenceBackend;
use crate::samples::{Random, Stored, put, vector};
use crate::step::{BlockId, BlockTable, Row, SeqId, StepInput, TokenId};

/// One sequence of so many tokens without a cache.
fn plain(tokens: usize) -> Batch {
    let tokens = vec![TokenId(0); tokens];
    let tables = vec![BlockTable::default()];
    let row = Row { seq: SeqId(0), start: 0, tokens, tables, sample: None, drafts: 0, score: None };
    Batch::new(&StepInput { rows: vec![row], ..StepInput::default() })
}

/// What rounding of both sides costs: floats are as they are on both sides, or halves.
fn limit(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::F32 => 1e-4,
        GgmlType::F16 => 0.003,
        _ => 0.02,
    }
}

pub(super) struct Product {
    weight: Stored,
    pub(super) tokens: usize,
    x: Vec<f32>,
    pub(super) compared: bool,
}

impl Product {
    fn new(ty: GgmlType, [cols, rows]: [usize; 2], tokens: usize, compared: bool) -> Self {
        let random = &mut Random(cols as u64 * 31 + tokens as u64);
        let weight = Stored::random(random, ty, [cols, rows, 1], 1.0);
        Self { weight, tokens, x: random.values(cols * tokens), compared }
    }
}

impl Op for Product {
    fn name(&self) -> String {
        let Stored { ty, cols, rows, .. } = self.weight;
        format!("product {ty:?} {rows} x {cols}, {} rows", self.tokens)
    }

    fn limit(&self) -> f64 {
        limit(self.weight.ty)
    }

    fn work(&self) -> (u64, u64) {
        let macs = self.weight.cols * self.weight.rows * self.tokens;
        (self.weight.data.len() as u64, macs as u64)
    }

    fn compared(&self) -> bool {
        self.compared
    }

    fn prepare<B: Backend + 'static>(&self, b: &mut B) -> Result<Prepared<B>, BackendError> {
        b.begin(&Batch::default())?;
        let weight = b.load_weight(&self.weight.view())?;
        let cols = self.weight.cols;
        let x = put(b, cols, &self.x)?;
        b.begin(&plain(self.tokens))?;
        Ok(Box::new(move |b| {
            let mut all = b.linear(&x, &[&weight])?;
            all.pop().ok_or_else(|| BackendError::Device("no product".to_owned()))
        }))
    }
}

pub(super) fn products() -> Vec<AnyOp> {
    let mut all = Vec::new();
    for format in &FORMATS {
        for tokens in [1, 7, 40, 100] {
            all.push(AnyOp::Product(Product::new(format.ty, [768, 520], tokens, true)));
        }
    }
    for ty in [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0] {
        for tokens in [1, 8, 32, 512] {
            all.push(AnyOp::Product(Product::new(ty, [4096, 16_384], tokens, false)));
        }
    }
    all
}

pub(super) struct Experts {
    parts: [Stored; 3],
    router: Stored,
    choice_bias: Option<Vec<f32>>,
    biases: Option<[Vec<f32>; 3]>,
    spec: RouteSpec,
    activation: Activation,
    pub(super) tokens: usize,
    x: Vec<f32>,
    pub(super) compared: bool,
}

impl Experts {
    fn new(ty: GgmlType, [hidden, inner, experts]: [usize; 3], spec: RouteSpec, tokens: usize) -> Self {
        let random = &mut Random(hidden as u64 * 17 + tokens as u64);
        let mut part = |cols, rows| Stored::random(random, ty, [cols, rows, experts], 0.05);
        let parts = [part(hidden, inner), part(hidden, inner), part(inner, hidden)];
        let router = Stored::random(random, GgmlType::F32, [hidden, experts, 1], 0.2);
        let choice_bias = spec.groups.is_some().then(|| random.values(experts));
        let clamped = spec.gating == Gating::ChosenSoftmax;
        let biases = clamped.then(|| [inner, inner, hidden].map(|n| random.values(n * experts)));
        let activation = if clamped { Activation::ClampedSwiglu } else { Activation::Silu };
        let x = random.values(hidden * tokens);
        Self { parts, router, choice_bias, biases, spec, activation, tokens, x, compared: true }
    }

    fn timed(self) -> Self {
        Self { compared: false, ..self }
    }
}

impl Op for Experts {
    fn name(&self) -> String {
        let [gate, ..] = &self.parts;
        let RouteSpec { top_k, gating, groups, .. } = self.spec;
        let grouped = if groups.is_some() { " in groups" } else { "" };
        format!(
            "experts {:?} {} of {} x {} x {}, {gating:?}{grouped}, {} rows",
            gate.ty, top_k, gate.experts, gate.rows, gate.cols, self.tokens
        )
    }

    fn limit(&self) -> f64 {
        limit(self.parts[0].ty) * 2.0
    }

    fn work(&self) -> (u64, u64) {
        let pairs = self.tokens * self.spec.top_k as usize;
        // Of random choices, that many experts are met.
        let experts = self.parts[0].experts as f64;
        let met = experts * (1.0 - (1.0 - 1.0 / experts).powi(pairs as i32));
        let bytes: usize = self.parts.iter().map(|p| p.data.len() / p.experts).sum();
        let macs: usize = self.parts.iter().map(|p| p.cols * p.rows).sum();
        ((bytes as f64 * met) as u64, (macs * pairs) as u64)
    }

    fn compared(&self) -> bool {
        self.compared
    }

    fn prepare<B: Backend + 'static>(&self, b: &mut B) -> Result<Prepared<B>, BackendError> {
        b.begin(&Batch::default())?;
        let [gate, up, down] = &self.parts;
        let [gate, up, down] =
            [b.load_weight(&gate.view())?, b.load_weight(&up.view())?, b.load_weight(&down.view())?];
        let router = b.load_weight(&self.router.view())?;
        let choice_bias = self.choice_bias.as_ref().map(|v| vector(b, v)).transpose()?;
        let biases = match &self.biases {
            None => None,
            Some([g, u, d]) => Some([vector(b, g)?, vector(b, u)?, vector(b, d)?]),
        };
        let x = put(b, self.router.cols, &self.x)?;
        let (batch, spec, activation) = (plain(self.tokens), self.spec, self.activation);
        b.begin(&batch)?;
        Ok(Box::new(move |b| {
            let router = Router { weight: &router, bias: None, choice_bias: choice_bias.as_ref() };
            let routing = b.route(&x, router, &spec)?;
            let biases = biases.as_ref().map(|[g, u, d]| [g, u, d]);
            let ffn = Gated { gate: &gate, up: &up, down: &down, biases, activation };
            b.experts(&x, &routing, ffn, &batch)
        }))
    }
}

pub(super) fn experts() -> Vec<AnyOp> {
    let softmax = RouteSpec { top_k: 2, gating: Gating::Softmax, groups: None, normalise: true, scale: 1.0 };
    let groups = |score| Some(ExpertGroups { count: 4, used: 2, score });
    let sigmoid =
        RouteSpec { gating: Gating::Sigmoid, groups: groups(GroupScore::BestTwo), scale: 2.5, ..softmax };
    let best = RouteSpec { groups: groups(GroupScore::Best), normalise: false, ..softmax };
    let chosen = RouteSpec { gating: Gating::ChosenSoftmax, normalise: false, ..softmax };
    let mut all = Vec::new();
    for format in &FORMATS {
        // One product per pair, pairs that share experts, and pairs enough for tensor cores.
        for tokens in [3, 70, 200] {
            all.push(AnyOp::Experts(Box::new(Experts::new(format.ty, [256, 512, 16], softmax, tokens))));
        }
    }
    for spec in [sigmoid, best, chosen] {
        for tokens in [5, 70] {
            all.push(AnyOp::Experts(Box::new(Experts::new(GgmlType::Q8_0, [256, 512, 16], spec, tokens))));
        }
    }
    let many = RouteSpec { top_k: 8, ..softmax };
    for tokens in [1, 8, 32, 128, 512, 2048] {
        all.push(AnyOp::Experts(Box::new(
            Experts::new(GgmlType::Q4_K, [2048, 768, 128], many, tokens).timed(),
        )));
    }
    all
}

enum Small {
    Norm { len: usize, width: usize },
    Rope { style: RopeStyle, first: usize, pairs: usize, head: usize },
    PerHead { ty: GgmlType, head: usize, cols: usize, rows: usize },
}

pub(super) struct SmallOp {
    what: Small,
    rows: usize,
    width: usize,
    x: Vec<f32>,
}

impl SmallOp {
    fn any(what: Small, width: usize, rows: usize) -> AnyOp {
        let x = Random(width as u64 + rows as u64).values(width * rows);
        AnyOp::Small(Self { what, rows, width, x })
    }
}

impl Op for SmallOp {
    fn name(&self) -> String {
        let what = match &self.what {
            Small::Norm { len, width } => format!("norm of {len} in {width}"),
            Small::Rope { style, first, pairs, head } => {
                format!("rope {style:?} of {} in {head} behind {first}", 2 * pairs)
            }
            Small::PerHead { ty, head, cols, rows } => format!("per head {ty:?} {rows} x {cols} in {head}"),
        };
        format!("{what}, {} rows", self.rows)
    }

    fn limit(&self) -> f64 {
        match self.what {
            Small::PerHead { ty, .. } => limit(ty),
            _ => 1e-4,
        }
    }

    fn work(&self) -> (u64, u64) {
        (8 * self.x.len() as u64, self.x.len() as u64)
    }

    fn compared(&self) -> bool {
        true
    }

    fn prepare<B: Backend + 'static>(&self, b: &mut B) -> Result<Prepared<B>, BackendError> {
        b.begin(&Batch::default())?;
        let x = put(b, self.width, &self.x)?;
        let random = &mut Random(5);
        match self.what {
            Small::Norm { len, .. } => {
                let weight = vector(b, &random.values(len))?;
                b.begin(&plain(self.rows))?;
                Ok(Box::new(move |b| b.rms_norm(&x, &weight, 1e-5)))
            }
            Small::Rope { style, first, pairs, head } => {
                let frequencies = (0..pairs).map(|i| 1e4f64.powf(-(i as f64) / pairs as f64)).collect();
                let rope = Rope { style, first: first as u32, frequencies, scale: 1.1 };
                let mut batch = plain(self.rows);
                batch.positions.iter_mut().for_each(|p| *p *= 37);
                b.begin(&batch)?;
                let all: Vec<u32> = (0..self.rows as u32).collect();
                Ok(Box::new(move |b| {
                    let mut y = b.select(&x, &all)?;
                    b.rope(&mut y, head as u32, &rope, &batch)?;
                    Ok(y)
                }))
            }
            Small::PerHead { ty, head, cols, rows } => {
                let heads = self.width / head;
                let weight = Stored::random(random, ty, [cols, rows, heads], 1.0);
                let weight = b.load_weight(&weight.view())?;
                b.begin(&plain(self.rows))?;
                Ok(Box::new(move |b| b.per_head(&x, &weight)))
            }
        }
    }
}

pub(super) fn small() -> Vec<AnyOp> {
    let mut all = vec![
        SmallOp::any(Small::Norm { len: 2048, width: 2048 }, 2048, 33),
        SmallOp::any(Small::Norm { len: 96, width: 96 }, 96, 70),
        SmallOp::any(Small::Norm { len: 128, width: 1024 }, 1024, 9),
        SmallOp::any(Small::Norm { len: 512, width: 576 }, 576, 9),
        SmallOp::any(Small::Rope { style: RopeStyle::Neox, first: 0, pairs: 64, head: 128 }, 1024, 9),
        SmallOp::any(Small::Rope { style: RopeStyle::Normal, first: 0, pairs: 16, head: 64 }, 256, 9),
        SmallOp::any(Small::Rope { style: RopeStyle::Normal, first: 512, pairs: 32, head: 576 }, 576, 9),
    ];
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::MXFP4] {
        for rows in [1, 9, 70] {
            all.push(SmallOp::any(Small::PerHead { ty, head: 192, cols: 128, rows: 512 }, 192 * 4, rows));
        }
    }
    all
}

pub(super) struct AttendOp {
    spec: AttendSpec,
    latent: bool,
    sinks: Option<Vec<f32>>,
    pub(super) page: PageType,
    /// Positions that are there already, and tokens of this step.
    context: usize,
    pub(super) tokens: usize,
    pub(super) compared: bool,
}

impl AttendOp {
    pub(super) fn layout(&self) -> GroupLayout {
        GroupLayout {
            layers: 1,
            kv_heads: self.spec.kv_heads as usize,
            key_dim: self.spec.key_dim as usize,
            value_dim: if self.latent { 0 } else { self.spec.value_dim as usize },
            blocks: (self.context + self.tokens).div_ceil(BLOCK) + 1,
        }
    }

    /// Tokens from `start` on, in blocks whose order is turned round.
    fn batch(&self, start: usize, tokens: usize) -> Batch {
        let blocks = self.layout().blocks as u32;
        let table = BlockTable { first: 0, blocks: (0..blocks).rev().map(BlockId).collect() };
        let row = Row {
            seq: SeqId(0),
            start: start as u32,
            tokens: vec![TokenId(0); tokens],
            tables: vec![table],
            sample: None,
            drafts: 0,
            score: None,
        };
        Batch::new(&StepInput { rows: vec![row], ..StepInput::default() })
    }
}

impl Op for AttendOp {
    fn name(&self) -> String {
        let AttendSpec { heads, kv_heads, key_dim, value_dim, window, .. } = self.spec;
        let kind = if self.latent { " latent" } else { "" };
        let window = window.map_or(String::new(), |w| format!(", window {w}"));
        let sinks = if self.sinks.is_some() { ", sinks" } else { "" };
        let (page, tokens, context) = (self.page, self.tokens, self.context);
        format!(
            "attention{kind} {heads}:{kv_heads} x {key_dim}:{value_dim}{window}{sinks}, {page:?}, {tokens} rows at {context}"
        )
    }

    fn limit(&self) -> f64 {
        if self.page == PageType::F32 { 1e-3 } else { 0.01 }
    }

    fn work(&self) -> (u64, u64) {
        let batch = self.batch(self.context, self.tokens);
        let spec = &self.spec;
        let dims = u64::from(spec.key_dim) + u64::from(spec.value_dim);
        let held = if self.latent { u64::from(spec.key_dim) } else { dims };
        let read = batch.spans.iter().map(|s| spec.positions_read(s)).sum::<u64>();
        let seen = batch.spans.iter().map(|s| spec.positions_seen(s)).sum::<u64>();
        (
            read * u64::from(spec.kv_heads) * held * self.page.row_bytes(1) as u64,
            seen * u64::from(spec.heads) * dims,
        )
    }

    fn compared(&self) -> bool {
        self.compared
    }

    fn reference(&self) -> Result<ReferenceBackend, GpuError> {
        KvStore::new(&[self.layout()], BLOCK, self.page).map(ReferenceBackend::new).map_err(device_error)
    }

    fn prepare<B: Backend + 'static>(&self, b: &mut B) -> Result<Prepared<B>, BackendError> {
        let spec = self.spec;
        let [q, k, v] = [
            spec.heads * spec.key_dim,
            spec.kv_heads * spec.key_dim,
            if self.latent { 0 } else { spec.kv_heads * spec.value_dim },
        ]
        .map(|w| w as usize);
        let random = &mut Random(self.context as u64 + 3);
        let sinks = self.sinks.as_ref().map(|s| vector(b, s)).transpose()?;
        let mut last = None;
        // Of what is before, only the pages are wanted: each token looks at itself alone.
        let before = AttendSpec { window: Some(1), ..spec };
        for (start, tokens, spec) in [(0, self.context, before), (self.context, self.tokens, spec)] {
            if tokens == 0 {
                continue;
            }
            let batch = self.batch(start, tokens);
            b.begin(&batch)?;
            let mut made = |b: &mut B, width: usize| put(b, width, &random.values(width * tokens));
            let (q, k) = (made(b, q)?, made(b, k)?);
            let v = if v > 0 { Some(made(b, v)?) } else { None };
            b.begin(&batch)?;
            b.attend(&q, &k, v.as_ref(), sinks.as_ref(), &spec, &batch)?;
            last = Some((batch, q, k, v));
        }
        let (batch, q, k, v) = last.ok_or_else(|| BackendError::Device("no tokens".to_owned()))?;
        Ok(Box::new(move |b| b.attend(&q, &k, v.as_ref(), sinks.as_ref(), &spec, &batch)))
    }
}

pub(super) fn attentions() -> Vec<AttendOp> {
    let op = |[heads, kv_heads, key_dim, value_dim]: [u32; 4],
              window,
              sinks: bool,
              page,
              [context, tokens]: [usize; 2]| {
        let latent = key_dim != value_dim;
        let scale = 1.0 / (key_dim as f32).sqrt();
        let spec = AttendSpec { group: 0, slot: 0, heads, kv_heads, key_dim, value_dim, scale, window };
        let sinks = sinks.then(|| Random(9).values(heads as usize));
        AttendOp { spec, latent, sinks, page, context, tokens, compared: true }
    };
    let mut all = Vec::new();
    for page in [PageType::F16, PageType::F32] {
        for at in [[0, 40], [700, 1], [700, 37], [700, 5]] {
            all.push(op([8, 2, 128, 128], None, false, page, at));
            all.push(op([16, 2, 64, 64], Some(128), true, page, at));
            all.push(op([6, 2, 32, 32], None, true, page, at));
            all.push(op([20, 1, 576, 512], None, false, page, at));
        }
    }
    let timed = |shape, at| AttendOp { compared: false, ..op(shape, None, false, PageType::F16, at) };
    for at in [[4096, 1], [0, 2048], [6144, 2048]] {
        all.push(timed([32, 4, 128, 128], at));
        all.push(timed([128, 1, 576, 512], at));
    }
    all
}

/// An operation that needs no cache.
pub(super) enum AnyOp {
    Product(Product),
    Experts(Box<Experts>),
    Small(SmallOp),
}

impl Op for AnyOp {
    fn name(&self) -> String {
        match self {
            Self::Product(op) => op.name(),
            Self::Experts(op) => op.name(),
            Self::Small(op) => op.name(),
        }
    }

    fn limit(&self) -> f64 {
        match self {
            Self::Product(op) => op.limit(),
            Self::Experts(op) => op.limit(),
            Self::Small(op) => op.limit(),
        }
    }

    fn work(&self) -> (u64, u64) {
        match self {
            Self::Product(op) => op.work(),
            Self::Experts(op) => op.work(),
            Self::Small(op) => op.work(),
        }
    }

    fn compared(&self) -> bool {
        match self {
            Self::Product(op) => op.compared(),
            Self::Experts(op) => op.compared(),
            Self::Small(op) => op.compared(),
        }
    }

    fn prepare<B: Backend + 'static>(&self, b: &mut B) -> Result<Prepared<B>, BackendError> {
        match self {
            Self::Product(op) => op.prepare(b),
            Self::Experts(op) => op.prepare(b),
            Self::Small(op) => op.prepare(b),
        }
    }
}
