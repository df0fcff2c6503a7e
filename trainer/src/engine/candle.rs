//! The engine on candle: the model as nanoGPT writes it, with automatic differentiation, on a CPU.
//!
//! The place to read the model and to try an idea, and the oracle that faster engines are tested
//! against. Only operations whose gradient candle knows are used: its fused LayerNorm and softmax
//! stop gradients silently, so both are composed here.

mod gpt;

use candle_core::{Device, Tensor, Var};
use kernels::adamw::AdamW;
use kernels::{adamw, global_norm};

use self::gpt::{Dropout, Gpt, KeyValueCache};
use super::{
    Engine, EngineState, Hyperparameters, Memory, MicroStep, UpdateStats, in_order, measured_peak,
};
use crate::data::Batch;
use crate::error::Result;
use crate::model::{ModelConfig, NamedTensor, Parameter};
use crate::philox::{Philox, Stream};

/// A model on candle's CPU device with its AdamW state.
pub struct CandleEngine {
    model: ModelConfig,
    hyper: Hyperparameters,
    parameters: Vec<Parameter>,
    /// One for each of `parameters`, as are the three lists below.
    vars: Vec<Var>,
    gradients: Vec<Vec<f32>>,
    exp_avg: Vec<Vec<f32>>,
    exp_avg_sq: Vec<Vec<f32>>,
    updates: u64,
    dropout: Philox,
    loss_sum: f64,
    micro_steps: u64,
    /// Keys and values of the sequence that `logits` saw last.
    cache: KeyValueCache,
}

impl CandleEngine {
    /// An engine with freshly initialised parameters.
    pub fn new(model: &ModelConfig, hyper: Hyperparameters) -> Result<Self> {
        let parameters = model.parameters();
        let fresh = model.initialise(hyper.seed);
        let vars = fresh.iter().map(to_var).collect::<Result<Vec<_>>>()?;
        let zeros = || {
            parameters
                .iter()
                .map(|p| vec![0.0; p.elements()])
                .collect::<Vec<_>>()
        };
        Ok(Self {
            model: model.clone(),
            gradients: zeros(),
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            updates: 0,
            dropout: Philox::new(hyper.seed, Stream::Dropout),
            loss_sum: 0.0,
            micro_steps: 0,
            cache: KeyValueCache::default(),
            hyper,
            parameters,
            vars,
        })
    }

    /// The gradients accumulated since the last update, in the order of the parameters.
    pub fn gradients(&self) -> Vec<NamedTensor> {
        self.named(&self.gradients)
    }

    /// Logits at every position without dropout, `(B, T, V)` flattened.
    pub fn all_logits(&self, batch: &Batch) -> Result<Vec<f32>> {
        let gpt = self.frozen()?;
        let hidden = gpt.hidden(&inputs(batch)?, None, None)?;
        Ok(gpt.head(&hidden)?.flatten_all()?.to_vec1()?)
    }

    /// The model over the trainable tensors: what it computes is recorded for `backward`.
    fn trainable(&self) -> Result<Gpt> {
        Gpt::new(
            &self.model,
            self.vars.iter().map(|var| var.as_tensor().clone()),
        )
    }

    /// The model over the same memory without a record.
    fn frozen(&self) -> Result<Gpt> {
        Gpt::new(
            &self.model,
            self.vars.iter().map(|var| var.as_detached_tensor()),
        )
    }

    fn named(&self, values: &[Vec<f32>]) -> Vec<NamedTensor> {
        let pairs = self.parameters.iter().zip(values);
        pairs
            .map(|(parameter, data)| NamedTensor {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                data: data.clone(),
            })
            .collect()
    }

    fn clear_gradients(&mut self) {
        for gradient in &mut self.gradients {
            gradient.fill(0.0);
        }
        self.loss_sum = 0.0;
        self.micro_steps = 0;
    }
}

impl Engine for CandleEngine {
    fn model(&self) -> &ModelConfig {
        &self.model
    }

    fn name(&self) -> &'static str {
        "candle"
    }

    fn device(&self) -> String {
        "cpu".to_owned()
    }

    fn peak_flops(&self) -> Result<Option<f64>> {
        Ok(Some(measured_peak()))
    }

    fn memory(&self) -> Option<Memory> {
        None
    }

    fn forward_backward(&mut self, batch: &Batch, at: MicroStep) -> Result<()> {
        let gpt = self.trainable()?;
        let dropout = Dropout {
            p: self.hyper.dropout,
            philox: &self.dropout,
            at,
        };
        let hidden = gpt.hidden(&inputs(batch)?, Some(&dropout), None)?;
        let loss = gpt::cross_entropy(&gpt.head(&hidden)?, &targets(batch)?)?;
        let scaled = (&loss / self.hyper.gradient_accumulation_steps as f64)?;
        let store = scaled.backward()?;
        for ((var, parameter), sum) in self
            .vars
            .iter()
            .zip(&self.parameters)
            .zip(&mut self.gradients)
        {
            let gradient = store.get(var.as_tensor());
            let gradient = gradient.unwrap_or_else(|| panic!("no gradient for {}", parameter.name));
            let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            for (sum, g) in sum.iter_mut().zip(gradient) {
                *sum += g;
            }
        }
        self.loss_sum += f64::from(loss.to_scalar::<f32>()?);
        self.micro_steps += 1;
        Ok(())
    }

    fn submit_update(&mut self, learning_rate: f64) -> Result<Option<UpdateStats>> {
        assert!(self.micro_steps > 0, "an update needs gradients");
        let squares = |gradient: &Vec<f32>| global_norm::cpu::sum_of_squares(gradient);
        let grad_norm = self.gradients.iter().map(squares).sum::<f64>().sqrt();
        let stats = UpdateStats {
            overflowed: false,
            loss: self.loss_sum / self.micro_steps as f64,
            grad_norm,
        };
        if !(stats.loss.is_finite() && grad_norm.is_finite()) {
            self.clear_gradients();
            return Ok(Some(stats));
        }
        self.updates += 1;
        for (index, parameter) in self.parameters.iter().enumerate() {
            let adamw = AdamW {
                learning_rate,
                beta1: self.hyper.beta1,
                beta2: self.hyper.beta2,
                eps: self.hyper.adam_eps,
                weight_decay: if parameter.decays() {
                    self.hyper.weight_decay
                } else {
                    0.0
                },
                update: self.updates,
                gradient_scale: global_norm::clip_factor(grad_norm, self.hyper.grad_clip),
            };
            let var = &self.vars[index];
            let mut values: Vec<f32> = var.flatten_all()?.to_vec1()?;
            let (m, v) = (&mut self.exp_avg[index], &mut self.exp_avg_sq[index]);
            let decayed = if parameter.decays() { values.len() } else { 0 };
            adamw::cpu::step(&mut values, &self.gradients[index], m, v, decayed, &adamw);
            var.set(&Tensor::from_vec(
                values,
                parameter.shape.as_slice(),
                &Device::Cpu,
            )?)?;
        }
        self.clear_gradients();
        self.cache = KeyValueCache::default();
        Ok(Some(stats))
    }

    fn loss(&mut self, batch: &Batch) -> Result<f64> {
        let gpt = self.frozen()?;
        let hidden = gpt.hidden(&inputs(batch)?, None, None)?;
        let loss = gpt::cross_entropy(&gpt.head(&hidden)?, &targets(batch)?)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        assert!(
            (1..=self.model.block_size).contains(&tokens.len()),
            "1 to {} tokens, got {}",
            self.model.block_size,
            tokens.len()
        );
        let gpt = self.frozen()?;
        let known = self.cache.reuse(tokens);
        let new = Tensor::new(&tokens[known..], &Device::Cpu)?.unsqueeze(0)?; // (1, T)
        let hidden = gpt.hidden(&new, None, Some(&mut self.cache))?; // (1, T, C)
        let last = hidden.narrow(1, tokens.len() - known - 1, 1)?; // (1, 1, C)
        self.cache.remember(tokens);
        Ok(gpt.head(&last)?.flatten_all()?.to_vec1()?)
    }

    fn state(&self) -> Result<EngineState> {
        let values: Vec<Vec<f32>> = self
            .vars
            .iter()
            .map(|var| var.flatten_all()?.to_vec1())
            .collect::<candle_core::Result<_>>()?;
        Ok(EngineState {
            parameters: self.named(&values),
            exp_avg: self.named(&self.exp_avg),
            exp_avg_sq: self.named(&self.exp_avg_sq),
            updates: self.updates,
            loss_scale: None,
        })
    }

    fn load_parameters(&mut self, parameters: &[NamedTensor]) -> Result<()> {
        let values = in_order(&self.parameters, parameters, "parameter")?;
        for (var, tensor) in self.vars.iter().zip(values) {
            var.set(&Tensor::from_slice(
                &tensor.data,
                tensor.shape.as_slice(),
                &Device::Cpu,
            )?)?;
        }
        self.cache = KeyValueCache::default();
        Ok(())
    }

    fn load_state(&mut self, state: &EngineState) -> Result<()> {
        let exp_avg = in_order(&self.parameters, &state.exp_avg, "first moment of")?;
        let exp_avg_sq = in_order(&self.parameters, &state.exp_avg_sq, "second moment of")?;
        self.load_parameters(&state.parameters)?;
        self.exp_avg = exp_avg
            .into_iter()
            .map(|tensor| tensor.data.clone())
            .collect();
        self.exp_avg_sq = exp_avg_sq
            .into_iter()
            .map(|tensor| tensor.data.clone())
            .collect();
        self.updates = state.updates;
        self.clear_gradients();
        Ok(())
    }
}

fn to_var(tensor: &NamedTensor) -> Result<Var> {
    Ok(Var::from_slice(
        &tensor.data,
        tensor.shape.as_slice(),
        &Device::Cpu,
    )?)
}

/// (B, T)
fn inputs(batch: &Batch) -> Result<Tensor> {
    let shape = (batch.batch_size, batch.block_size);
    Ok(Tensor::from_slice(&batch.inputs, shape, &Device::Cpu)?)
}

/// (B * T)
fn targets(batch: &Batch) -> Result<Tensor> {
    Ok(Tensor::new(batch.targets.as_slice(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests;
