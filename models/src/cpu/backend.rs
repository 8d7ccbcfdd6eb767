//! [`Backend`] on the processor: checks shapes, counts work, and calls what computes.

use super::attention::Attend;
use super::experts::Assigned;
use super::{CpuBackend, CpuRouting, CpuTensor, CpuVector, CpuWeight, math};
use crate::backend::{AttendSpec, Backend, BackendError, Batch, Gated, Rope, RouteSpec, Router};
use crate::step::StepStats;
use crate::weights::TensorView;

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Room = ();
    type Vector = CpuVector;
    type Routing = CpuRouting;

    fn load_weight(&mut self, view: &TensorView<'_>) -> Result<CpuWeight, BackendError> {
        self.loaded.load(view, &self.core)
    }

    fn load_embedding(&mut self, view: &TensorView<'_>) -> Result<CpuWeight, BackendError> {
        self.loaded.load(view, &self.core)
    }

    fn load_tied(&mut self, view: &TensorView<'_>) -> Result<[CpuWeight; 2], BackendError> {
        let weight = self.load_weight(view)?;
        Ok([weight.clone(), weight])
    }

    fn load_vector(&mut self, view: &TensorView<'_>) -> Result<CpuVector, BackendError> {
        CpuVector::new(view)
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.packers.set_busy(true);
        self.kv.copy(&batch.copies);
        self.meter.begin(batch);
        self.angles.clear();
        Ok(())
    }

    fn embed(&mut self, table: &CpuWeight, batch: &Batch) -> Result<CpuTensor, BackendError> {
        let mut out = self.core.env.floats.take(batch.tokens.len() * table.cols);
        let env = &self.core.env;
        self.core.rows_mut(&mut out, table.cols, |worker, i, to| {
            table.gather(batch.tokens[i].0 as usize, &mut env.scratch(worker).raw, to);
        });
        Ok(CpuTensor::new(batch.tokens.len(), table.cols, out, None))
    }

    fn rms_norm(&mut self, x: &CpuTensor, weight: &CpuVector, eps: f32) -> Result<CpuTensor, BackendError> {
        let weight = &weight.values;
        assert!(weight.len() <= x.width, "at least one group");
        self.count(x, 4 * weight.len() as u64, x.width as u64);
        let mut out = self.core.env.floats.take(x.values().len());
        let isa = self.core.env.isa;
        self.core.rows_mut(&mut out, x.width, |_, i, to| math::rms_norm(isa, x.row(i), weight, eps, to));
        Ok(CpuTensor::new(x.rows, x.width, out, x.tokens.clone()))
    }

    fn linear(&mut self, x: &CpuTensor, weights: &[&CpuWeight]) -> Result<Vec<CpuTensor>, BackendError> {
        for w in weights {
            self.count(x, w.matrix_bytes(), w.macs());
        }
        Ok(self.core.products(x, weights))
    }

    fn add_bias(&mut self, x: &mut CpuTensor, bias: &CpuVector) -> Result<(), BackendError> {
        assert_eq!(x.width, bias.values.len(), "a bias per value");
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, _, row| math::add(isa, row, &bias.values, 1.0));
        Ok(())
    }

    fn per_head(&mut self, x: &CpuTensor, w: &CpuWeight) -> Result<CpuTensor, BackendError> {
        let heads = w.experts as u64;
        self.count(x, heads * w.matrix_bytes(), heads * w.macs());
        self.make_ready(&[w], 0..w.experts);
        Ok(self.core.head_products(x, w))
    }

    fn rope(
        &mut self,
        x: &mut CpuTensor,
        head_dim: u32,
        rope: &Rope,
        batch: &Batch,
    ) -> Result<(), BackendError> {
        let (dim, width) = (head_dim as usize, 2 * rope.frequencies.len());
        assert!(x.rows == batch.positions.len() && x.tokens.is_none(), "all of the batch's tokens");
        let first = rope.first as usize;
        assert!(x.width.is_multiple_of(dim) && first + width <= dim, "whole heads, pairs inside them");
        let angles = self.angles(rope, batch);
        let (angles, isa, row_width) = (&self.angles[angles].1, self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), row_width, |_, i, row| {
            math::rope(isa, row, (first, dim), rope.style, &angles[i * width..(i + 1) * width]);
        });
        Ok(())
    }

    fn attend(
        &mut self,
        q: &CpuTensor,
        k: &CpuTensor,
        v: Option<&CpuTensor>,
        sinks: Option<&CpuVector>,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> Result<CpuTensor, BackendError> {
        let (core, block_tokens) = (&self.core, self.kv.block_tokens());
        let sinks = sinks.map(|s| &s.values[..]);
        let input = Attend { q, k, v, sinks, spec, batch, block_tokens };
        let pages = self.kv.group_mut(spec.group as usize);
        let out = core.attention(&input, pages);
        let (dims, bytes) =
            (u64::from(spec.key_dim) + u64::from(spec.value_dim), pages.position_bytes() as u64);
        for (i, span) in batch.spans.iter().enumerate() {
            self.meter.attention(
                i,
                spec.positions_read(span) * bytes,
                spec.positions_seen(span) * u64::from(spec.heads) * dims,
            );
        }
        Ok(out)
    }

    fn route(
        &mut self,
        x: &CpuTensor,
        router: Router<'_, CpuWeight, CpuVector>,
        spec: &RouteSpec,
    ) -> Result<CpuRouting, BackendError> {
        self.count(x, router.weight.matrix_bytes(), router.weight.macs());
        let logits = self.core.products(x, &[router.weight]);
        Ok(self.core.choose(&logits[0], [router.bias, router.choice_bias], spec))
    }

    fn experts(
        &mut self,
        x: &CpuTensor,
        routing: &CpuRouting,
        ffn: Gated<'_, CpuWeight, CpuVector>,
        batch: &Batch,
    ) -> Result<CpuTensor, BackendError> {
        let all = batch.tokens.len();
        assert_eq!(x.rows, x.tokens.as_ref().map_or(all, |t| t.len()), "the batch's tokens");
        assert_eq!(routing.experts.len(), x.rows * routing.top_k, "routed for the same tokens");
        let parts = [ffn.gate, ffn.up, ffn.down];
        let bytes = parts.iter().map(|w| w.matrix_bytes()).sum();
        let macs = parts.iter().map(|w| w.macs()).sum();
        let (chosen, experts) = (&routing.experts, ffn.gate.experts);
        match &x.tokens {
            None => self.meter.experts(chosen, routing.top_k, experts, bytes, macs),
            Some(t) => self.meter.experts_selected(t, chosen, routing.top_k, experts, bytes, macs),
        }
        let assigned = Assigned::routed(routing, experts);
        self.make_ready(&parts, assigned.matrices());
        Ok(self.core.gated(x, &assigned, ffn))
    }

    fn feed_forward(
        &mut self,
        x: &CpuTensor,
        ffn: Gated<'_, CpuWeight, CpuVector>,
    ) -> Result<CpuTensor, BackendError> {
        for w in [ffn.gate, ffn.up, ffn.down] {
            assert_eq!(w.experts, 1, "a dense feed-forward");
            self.count(x, w.matrix_bytes(), w.macs());
        }
        Ok(self.core.gated(x, &Assigned::all(x.rows), ffn))
    }

    fn gate(&mut self, x: &mut CpuTensor, by: &CpuTensor, gate: &CpuVector) -> Result<(), BackendError> {
        let gate = &gate.values;
        assert!(by.width == gate.len() && x.rows == by.rows, "a gate for each row");
        self.count(by, 4 * gate.len() as u64, gate.len() as u64);
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, i, row| math::gate(isa, row, by.row(i), gate));
        Ok(())
    }

    fn scale(&mut self, x: &mut CpuTensor, factor: f32) -> Result<(), BackendError> {
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, _, row| math::scale(isa, row, factor));
        Ok(())
    }

    fn add(&mut self, x: &mut CpuTensor, y: &CpuTensor, factor: f32) -> Result<(), BackendError> {
        assert!(x.rows == y.rows && x.width == y.width, "equal shapes");
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, i, row| math::add(isa, row, y.row(i), factor));
        Ok(())
    }

    fn select(&mut self, x: &CpuTensor, indices: &[u32]) -> Result<CpuTensor, BackendError> {
        let mut out = self.core.env.floats.take(indices.len() * x.width);
        for (to, &i) in out.chunks_exact_mut(x.width).zip(indices) {
            to.copy_from_slice(x.row(i as usize));
        }
        let tokens = match &x.tokens {
            None => indices.into(),
            Some(t) => indices.iter().map(|&i| t[i as usize]).collect(),
        };
        Ok(CpuTensor::new(indices.len(), x.width, out, Some(tokens)))
    }

    fn read<'a>(&mut self, x: &'a CpuTensor, (): &'a mut ()) -> Result<&'a [f32], BackendError> {
        Ok(x.values())
    }

    fn recover(&mut self) -> Result<(), BackendError> {
        self.packers.set_busy(false);
        Ok(())
    }

    fn workers(&self) -> usize {
        self.core.pool.threads()
    }

    fn spread(&self, items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        self.core.pool.for_each(items, work);
    }

    fn take_stats(&mut self) -> Result<StepStats, BackendError> {
        self.packers.set_busy(false);
        Ok(self.meter.take())
    }
}
