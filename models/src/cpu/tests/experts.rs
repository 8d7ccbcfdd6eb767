//! Gated feed-forwards against the reference, and bit for bit whatever the batch and the machine.

use super::*;

/// A stack's gate, up and down with their biases, and a router.
struct Stack {
    parts: [Stored; 3],
    router: Stored,
    biases: Option<[Vec<f32>; 3]>,
    activation: Activation,
    spec: RouteSpec,
}

impl Stack {
    fn new(random: &mut Random, ty: GgmlType, [hidden, inner, experts]: [usize; 3], top_k: usize) -> Self {
        let shapes = [[hidden, inner, experts], [hidden, inner, experts], [inner, hidden, experts]];
        let size = 2.0 / (hidden as f32).sqrt();
        let parts = shapes.map(|shape| Stored::random(random, ty, shape, size));
        let router = Stored::random(random, GgmlType::F32, [hidden, experts, 1], 1.0);
        let (gating, top_k) = (Gating::Softmax, top_k as u32);
        let spec = RouteSpec { top_k, gating, groups: None, normalise: true, scale: 1.5 };
        Self { parts, router, biases: None, activation: Activation::Silu, spec }
    }

    /// With biases, and gates that reach the clamp.
    fn biased(self, random: &mut Random) -> Self {
        let large = |n: usize| random.values(n).into_iter().map(|v| 20.0 * v).collect();
        let biases = self.parts.each_ref().map(|p| p.rows * p.experts).map(large);
        Self { biases: Some(biases), activation: Activation::ClampedSwiglu, ..self }
    }

    fn run<B: Backend>(&self, b: &mut B, x: &B::Tensor, batch: &Batch) -> B::Tensor {
        let [gate, up, down] = self.parts.each_ref().map(|p| b.load_weight(&p.view()).unwrap());
        let biases = self.biases.as_ref().map(|all| {
            let shape = |i: usize| [self.parts[i].rows, self.parts[i].experts, 1];
            [0, 1, 2].map(|i| b.load_vector(&view(&le_bytes(&all[i]), shape(i))).unwrap())
        });
        let biases = biases.as_ref().map(|all| all.each_ref());
        let (gate, up, down, activation) = (&gate, &up, &down, self.activation);
        let ffn = Gated { gate, up, down, biases, activation };
        if self.parts[0].experts == 1 {
            return b.feed_forward(x, ffn).unwrap();
        }
        let router = b.load_weight(&self.router.view()).unwrap();
        let router = Router { weight: &router, bias: None, choice_bias: None };
        let routing = b.route(x, router, &self.spec).unwrap();
        b.experts(x, &routing, ffn, batch).unwrap()
    }

    /// The result and the work, also of every other token alone.
    fn results<B: Backend>(&self, b: &mut B, x: &[f32]) -> (Vec<f32>, [StepStats; 2]) {
        let width = self.parts[0].cols;
        let batch = batch(x.len() / width);
        let x = put(b, width, x);
        b.begin(&batch).unwrap();
        let out = self.run(b, &x, &batch);
        let (mut values, all) = (b.values(&out).unwrap(), b.take_stats().unwrap());
        b.begin(&batch).unwrap();
        let some: Vec<u32> = (0..batch.tokens.len() as u32).step_by(2).collect();
        let some = b.select(&x, &some).unwrap();
        let out = self.run(b, &some, &batch);
        values.extend_from_slice(&b.values(&out).unwrap());
        (values, [all, b.take_stats().unwrap()])
    }
}

#[test]
fn feed_forwards_are_the_references() {
    let shapes = [
        // hidden, inner, experts; top_k, tokens
        ([7, 5, 1], 1, 9),
        ([40, 90, 1], 1, 33),
        ([1, 1, 3], 2, 4),
        ([33, 70, 8], 3, 50),
        ([12, 9, 256], 8, 30),
        ([16, 8, 384], 8, 41),
    ];
    for (i, (shape, top_k, tokens)) in shapes.into_iter().enumerate() {
        for biased in [false, true] {
            let random = &mut Random(1000 + i as u64);
            let stack = Stack::new(random, GgmlType::F32, shape, top_k);
            let stack = if biased { stack.biased(random) } else { stack };
            let x = random.values(tokens * shape[0]);
            let (expected, work) = stack.results(&mut reference(), &x);
            let (found, cpu_work) = stack.results(&mut backend(3, Isa::detect()), &x);
            assert_eq!(work, cpu_work, "{shape:?}");
            assert_close(&found, &widen(&expected), 2e-5).unwrap();
        }
    }
}

/// Against plain f64, so that the reference is not the only witness.
#[test]
fn clamps_and_biases_are_where_they_belong() {
    let random = &mut Random(77);
    let stack = Stack::new(random, GgmlType::F32, [6, 5, 1], 1).biased(random);
    let x = random.values(4 * 6);
    let batch = batch(4);
    let mut b = backend(1, Isa::detect());
    let xt = put(&mut b, 6, &x);
    b.begin(&batch).unwrap();
    let out = stack.run(&mut b, &xt, &batch);
    let found = b.values(&out).unwrap();
    let [gate, up, down] = stack.parts.each_ref().map(Stored::values);
    let biases = stack.biases.unwrap().map(|b| widen(&b));
    let biased = |x: &[f64], w: &[f32], bias: &[f64]| -> Vec<f64> {
        product(x, w).iter().zip(bias).map(|(y, b)| y + b).collect()
    };
    let mut exact = Vec::new();
    for x in x.chunks_exact(6) {
        let x = widen(x);
        let (g, u) = (biased(&x, &gate, &biases[0]), biased(&x, &up, &biases[1]));
        assert!(g.iter().chain(&u).any(|v| v.abs() > 7.0), "something is clamped");
        let inner: Vec<f64> = g
            .iter()
            .zip(&u)
            .map(|(g, u)| {
                let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                g / (1.0 + (-1.702 * g).exp()) * (u + 1.0)
            })
            .collect();
        exact.extend(biased(&inner, &down, &biases[2]));
    }
    assert_close(&found, &exact, 1e-5).unwrap();
}

#[test]
fn feed_forwards_are_invariant() {
    for (i, format) in FORMATS.iter().enumerate() {
        let random = &mut Random(1100 + i as u64);
        let (hidden, inner) = (format.block.max(24), 2 * format.block.max(20));
        for experts in [1, 5] {
            let top_k = experts.min(3);
            let stack = Stack::new(random, format.ty, [hidden, inner, experts], top_k).biased(random);
            check_rows(hidden, &random.values(31 * hidden), |b, x, batch| stack.run(b, &x, batch));
        }
    }
}
