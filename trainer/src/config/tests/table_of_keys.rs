//! The table of keys: defaults, setting by name, `--help`.

use super::*;

#[test]
fn defaults_are_nanogpts() {
    // device and dtype are ours: nanoGPT's assume a GPU.
    let nanogpt = "\
        out_dir=\"out\" eval_interval=2000 log_interval=1 eval_iters=200 eval_only=false \
        always_save_checkpoint=true init_from=\"scratch\" wandb_log=false \
        wandb_project=\"owt\" wandb_run_name=\"gpt2\" dataset=\"openwebtext\" \
        gradient_accumulation_steps=40 batch_size=12 block_size=1024 n_layer=12 n_head=12 \
        n_embd=768 dropout=0.0 bias=false learning_rate=0.0006 max_iters=600000 \
        weight_decay=0.1 beta1=0.9 beta2=0.95 grad_clip=1.0 decay_lr=true warmup_iters=2000 \
        lr_decay_iters=600000 min_lr=6e-5 backend=\"nccl\" device=\"auto\" dtype=\"auto\" \
        compile=true";
    let default = Config::default();
    let ours: Vec<_> = KEYS
        .iter()
        .filter(|key| key.group == Group::NanoGpt)
        .map(|key| format!("{}={}", key.name, (key.get)(&default)))
        .collect();
    assert_eq!(ours.len(), 33);
    assert_eq!(ours.join(" "), nanogpt);
}

#[test]
fn defaults_are_valid_and_need_no_note() {
    let resolved = Config::resolve(None, &[]).unwrap();
    assert_eq!(resolved.config, Config::default());
    assert_eq!(resolved.name, "default");
    assert_eq!(resolved.notes, Vec::<String>::new());
    assert_eq!(resolved.config.tokens_per_iteration(), 491_520);
}

#[test]
fn every_key_is_set_by_name_alone() {
    for key in KEYS {
        let value = match key.kind {
            Kind::Int => Value::Integer(77),
            Kind::Float => Value::Float(0.5),
            Kind::Bool => Value::Bool(!matches!((key.get)(&Config::default()), Value::Bool(true))),
            Kind::Text | Kind::Path => Value::Text("other".to_owned()),
        };
        let mut config = Config::default();
        assert!((key.set)(&mut config, &value), "{}", key.name);
        let changed: Vec<_> = Config::default().differences(&config);
        assert_eq!(changed.len(), 1, "{}: {changed:?}", key.name);
        assert_eq!(changed[0].key, key.name);
        assert_eq!(changed[0].new, value.to_string());
    }
}

#[test]
fn choices_name_keys_of_words() {
    for (name, _) in CHOICES {
        let key = table::find(name).expect(name);
        assert_eq!(key.kind, Kind::Text, "{name}");
    }
}

#[test]
fn help_lists_every_key_within_its_width() {
    let help = Config::help();
    for key in KEYS {
        assert!(help.contains(&format!("  --{} ", key.name)), "{}", key.name);
    }
    for line in help.lines() {
        assert!(line.len() <= 100, "{line}");
    }
    expect![[r#"
        nanoGPT's keys, with their types and defaults:
          --out_dir                      path   "out"          run directory: config, events,
                                                               checkpoints
          --eval_interval                int    2000           evaluate every so many steps, and
                                                               before the first
          --log_interval                 int    1              log the training loss every so many
                                                               steps
          --eval_iters                   int    200            batches per split in an evaluation
          --eval_only                    bool   false          evaluate once and end
          --always_save_checkpoint       bool   true           save a checkpoint after every
                                                               evaluation, not only after one that
                                                               improves
          --init_from                    str    "scratch"      where the weights come from; auto
                                                               resumes if out_dir holds a
                                                               checkpoint; a folder or OWNER/NAME is
                                                               a GPT-2 of Hugging Face (scratch,
                                                               resume, auto, gpt2, gpt2-medium,
                                                               gpt2-large, gpt2-xl, ./FOLDER,
                                                               OWNER/NAME)
          --wandb_log                    bool   false          no effect: events.jsonl holds the
                                                               metrics
          --wandb_project                str    "owt"          no effect, see wandb_log
          --wandb_run_name               str    "gpt2"         no effect, see wandb_log
          --dataset                      str    "openwebtext"  name of the dataset: its folder in
                                                               data_dir; or the path of token files
                                                               of llm.c's, a file, folder or glob
          --gradient_accumulation_steps  int    40             batches whose gradients make up one
                                                               step
          --batch_size                   int    12             sequences in a batch
          --block_size                   int    1024           longest context, in tokens
          --n_layer                      int    12             transformer blocks
          --n_head                       int    12             attention heads in a block
          --n_embd                       int    768            width of the model, a multiple of
                                                               n_head
          --dropout                      float  0.0            probability of dropping an
                                                               activation; 0 for pretraining, 0.1 or
                                                               more to finetune
          --bias                         bool   false          biases in linear layers and
                                                               LayerNorms
          --learning_rate                float  0.0006         highest learning rate
          --max_iters                    int    600000         steps to train
          --weight_decay                 float  0.1            weight decay of matrices and
                                                               embeddings
          --beta1                        float  0.9            AdamW's decay of the mean gradient
          --beta2                        float  0.95           AdamW's decay of the mean squared
                                                               gradient
          --grad_clip                    float  1.0            largest global norm of the gradient;
                                                               0 means off
          --decay_lr                     bool   true           warm the learning rate up and decay
                                                               it; false keeps it constant
          --warmup_iters                 int    2000           steps of warm-up
          --lr_decay_iters               int    600000         step at which the learning rate
                                                               reaches min_lr, usually max_iters
          --min_lr                       float  6e-5           lowest learning rate, usually a tenth
                                                               of learning_rate
          --backend                      str    "nccl"         no effect: a run uses one process
          --device                       str    "auto"         where to compute; auto is the CPU
                                                               where there is no usable GPU (auto,
                                                               cpu, cuda, cuda:N, mps)
          --dtype                        str    "auto"         precision of the arithmetic; weights
                                                               are always kept in float32 (auto,
                                                               float32, bfloat16, float16)
          --compile                      bool   true           no effect: the program is compiled
                                                               already

        Further keys:
          --seed                         int    1              seed of everything random
          --data_dir                     path   ""             folder of the datasets; if empty,
                                                               $ANNEAL_DATA or else data
          --data_url                     str    ""             mirror to try first when a dataset is
                                                               fetched
          --fit_batch                    bool   false          choose batch_size by the device's
                                                               memory, with as many tokens a step;
                                                               --batch_size=auto says so
          --vocab_size                   int    0              tokens in the vocabulary; 0 means as
                                                               the dataset says
          --gelu                         str    "erf"          form of GELU: erf, nanoGPT's exact
                                                               one, or tanh, GPT-2's (erf, tanh)
          --sampling                     str    "random"       training windows: random ones, or
                                                               every one once an epoch (random,
                                                               epoch)
          --checkpoint_interval          int    0              save a checkpoint every so many
                                                               steps; 0 means off
          --checkpoint_minutes           float  10.0           save a checkpoint every so many
                                                               minutes; 0 means off
          --keep_last                    int    2              newest checkpoints to keep; the best
                                                               one is kept besides
          --overwrite                    bool   false          start afresh in an out_dir that holds
                                                               checkpoints
          --adam_eps                     float  1e-8           AdamW's epsilon
          --on_divergence                str    "stop"         when the loss runs away: stop, or
                                                               roll back to the last good checkpoint
                                                               (stop, rollback)
          --divergence_factor            float  3.0            a loss above this multiple of its
                                                               running mean has diverged; 0 means
                                                               off
          --rollback_max                 int    3              roll back at most so many times
          --engine                       str    "auto"         what computes the model; auto is the
                                                               fused engine, candle the readable one
                                                               (auto, fused, candle)
          --recompute                    str    "auto"         what backward computes again: none,
                                                               gelu (and LayerNorm), block; auto: as
                                                               memory asks (auto, none, gelu, block)
          --cublaslt                     str    "auto"         on a GPU, products by NVIDIA's
                                                               library: auto, where it is faster;
                                                               on, wherever it can be; off (auto,
                                                               on, off)
          --tf32                         bool   true           on a GPU, round factors of float32
                                                               products to TF32 (cuBLASLt only), as
                                                               nanoGPT
          --threads                      int    0              CPU threads; 0 means all cores
          --progress                     str    "auto"         show a bar, or nanoGPT's log lines;
                                                               auto is a bar on a terminal (auto,
                                                               bar, lines)
          --tensorboard_log              bool   false          keep an event file for TensorBoard in
                                                               out_dir/tensorboard while the run
                                                               goes on
          --verbose                      bool   false          say more at the start, who computes
                                                               each product for one; -v
          --sample_tokens                int    0              tokens to sample and show at the end
                                                               of training
          --temperature                  float  0.8            sampling: below 1 is safer, above 1
                                                               wilder; 0 always takes the likeliest
                                                               token
          --top_k                        int    200            sampling: only from the k likeliest
                                                               tokens; 0 means off
          --top_p                        float  1.0            sampling: only from the likeliest
                                                               tokens of this total probability
    "#]]
    .assert_eq(&help);
}
