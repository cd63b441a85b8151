//! `longview doctor`: what this machine offers, and what fits into it.

use longview::{EngineOptions, Isa, MemoryPlan, Pool, inspect, limits, plan};
use serde_json::{Map, Value, json};

use crate::args::{DoctorArgs, Format};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::output;
use crate::session::refused;
use crate::size::human_count;
use longview::human_bytes;

/// Bytes read to measure memory bandwidth: far beyond any cache.
const MEASURED_BYTES: usize = 1 << 30;

/// Prints what the processor and the memory can do for a model.
pub(crate) fn run(args: &DoctorArgs, format: Format) -> Result<(), Failure> {
    let machine = Machine::look();
    let isa = Isa::from_environment().map_err(Failure::wrong)?;
    let threads = args.engine.threads.unwrap_or(machine.threads);
    let methods = args.methods.methods()?;
    let mut options = args.engine.options(&methods)?;
    let given = options.memory_bytes;
    // Without a limit, what is there is the limit.
    options.memory_bytes = given.or_else(|| machine.memory.usable());
    let mut notices = Vec::new();
    options.store = args
        .store
        .options(options.memory_bytes, &mut notices)?
        .options;
    let disk = match given {
        Some(_) => Disk::Taken,
        None => Disk::OnRequest,
    };
    let model = Model::look(&options, args.tokens, disk)?;
    let limits = args.measure.then(|| {
        let usable = machine
            .memory
            .usable()
            .map_or(MEASURED_BYTES as u64, |bytes| bytes / 2);
        let bytes = MEASURED_BYTES.min(usize::try_from(usable).unwrap_or(MEASURED_BYTES));
        limits::measure(isa, &Pool::new(threads), bytes)
    });
    match format {
        Format::Json => {
            let mut object = Map::new();
            object.insert("processor".to_owned(), json!(machine.processor));
            object.insert("hardware_threads".to_owned(), json!(machine.threads));
            object.insert("features".to_owned(), json!(machine.features));
            object.insert("instruction_set".to_owned(), json!(isa.to_string()));
            object.insert("threads".to_owned(), json!(threads));
            let caches: Vec<Value> = machine
                .caches
                .iter()
                .map(|(level, bytes)| json!({ "level": level, "bytes": bytes }))
                .collect();
            object.insert("caches".to_owned(), json!(caches));
            object.insert("memory_total_bytes".to_owned(), json!(machine.memory.total));
            object.insert(
                "memory_available_bytes".to_owned(),
                json!(machine.memory.available),
            );
            object.insert("memory_limit_bytes".to_owned(), json!(machine.memory.limit));
            if let Some(limits) = limits {
                object.insert("limits".to_owned(), super::bench::limits_json(&limits));
            }
            object.insert("model".to_owned(), model.json());
            object.insert("notices".to_owned(), json!(notices));
            output::print_json(&object)
        }
        Format::Text => {
            let mut text = machine_text(&machine, isa, threads);
            if let Some(limits) = limits {
                text.push_str(&format!(
                    "measured        memory {:.1} GB/s, int8 {:.2} TOP/s, f32 {:.0} GFLOP/s\n",
                    limits.memory_gb_per_s, limits.int8_tops, limits.f32_gflops
                ));
            } else {
                text.push_str("measured        nothing yet; --measure takes a few seconds\n");
            }
            text.push_str(&model.text());
            for notice in &notices {
                output::tell(notice);
            }
            output::print(&text)
        }
    }
}

/// What a model is and needs.
struct Model {
    about: longview::ModelDescription,
    kv_bytes_per_token: f64,
    /// With all keys and values in memory.
    in_memory: MemoryPlan,
    /// With those on disk that memory has no room for.
    with_disk: MemoryPlan,
    disk: Disk,
}

/// Whether keys and values go to disk where memory has no room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// They do: a limit was given.
    Taken,
    /// Only if a limit is given.
    OnRequest,
}

impl Model {
    fn look(options: &EngineOptions, tokens: Option<usize>, disk: Disk) -> Result<Model, Failure> {
        let (about, _) = inspect(options).map_err(|error| refused(&options.model, error))?;
        let tokens = tokens.unwrap_or(about.context_length);
        let with_disk = plan(options, tokens)?;
        let without = EngineOptions {
            store: None,
            ..options.clone()
        };
        let in_memory = plan(&without, tokens)?;
        let kv_bytes_per_token = in_memory.kv as f64 / in_memory.tokens.max(1) as f64;
        Ok(Model {
            about,
            kv_bytes_per_token,
            in_memory,
            with_disk,
            disk,
        })
    }

    /// What `ask` goes by under the same flags.
    fn plan(&self) -> &MemoryPlan {
        match self.disk {
            Disk::Taken => &self.with_disk,
            Disk::OnRequest => &self.in_memory,
        }
    }

    /// Whether the model can read so much.
    fn is_readable(&self) -> bool {
        self.plan().tokens <= self.about.context_length
    }

    fn json(&self) -> Value {
        let plan = self.plan();
        let fits = plan.fits() && self.is_readable();
        json!({
            "name": self.about.name,
            "architecture": self.about.architecture,
            "parameters": self.about.parameters,
            "layers": self.about.layers,
            "format": self.about.format,
            "file_bytes": self.about.file_bytes,
            "weights_bytes": plan.weights,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "context_length": self.about.context_length,
            "plan": {
                "tokens": plan.tokens,
                "program_bytes": plan.program,
                "weights_bytes": plan.weights,
                "kv_bytes": plan.kv,
                "kv_on_disk_bytes": if fits { plan.kv_on_disk() } else { 0 },
                "scratch_bytes": plan.scratch,
                "total_bytes": plan.total(),
                "limit_bytes": plan.limit,
                "fits": fits,
            },
            "longest_context": plan.longest_context,
            "longest_context_in_memory": self.in_memory.longest_context,
            "longest_context_with_disk": self.with_disk.longest_context,
        })
    }

    /// Whether the context fits, in words.
    fn verdict(&self) -> String {
        let on_disk = || human_bytes(self.with_disk.kv_on_disk());
        if !self.is_readable() {
            "longer than the model reads".to_owned()
        } else if self.in_memory.fits() {
            "it fits".to_owned()
        } else if !self.with_disk.fits() {
            "it does NOT fit".to_owned()
        } else if self.disk == Disk::Taken {
            format!(
                "it fits, with {} of its keys and values on disk, which is exact and slower",
                on_disk()
            )
        } else {
            format!(
                "it does NOT fit in memory; with a limit such as --memory {} it does, {} of its keys \
                 and values on disk, which is exact and slower",
                human_bytes(self.with_disk.limit.unwrap_or_default()).replace(' ', ""),
                on_disk()
            )
        }
    }

    fn text(&self) -> String {
        let about = &self.about;
        let fits = self.verdict();
        let lines = self.plan().to_string();
        // A refusal's first line names --memory, and here the machine's memory may be the limit; how long
        // a context may be is said below.
        let known = ["a context of", "the longest context"];
        let table: Vec<&str> = lines
            .lines()
            .filter(|line| !known.iter().any(|known| line.starts_with(known)))
            .collect();
        let longest = match (
            self.in_memory.longest_context,
            self.with_disk.longest_context,
        ) {
            (_, 0) => String::new(),
            (in_memory, with_disk) => format!(
                "longest context  {} tokens in memory, {} with keys and values on disk under --memory\n",
                human_count(in_memory),
                human_count(with_disk),
            ),
        };
        format!(
            "\nmodel           {} ({}, {} layers, {} parameters, mostly {})\n\
             file            {}\n\
             KV per token    {}\n\
             context length  {} tokens\n\n\
             a context of {} tokens: {fits}\n{}\n{longest}",
            about.name,
            about.architecture,
            about.layers,
            human_count(usize::try_from(about.parameters).unwrap_or(usize::MAX)),
            about.format,
            human_bytes(about.file_bytes),
            human_bytes(self.kv_bytes_per_token.ceil() as u64),
            human_count(about.context_length),
            human_count(self.plan().tokens),
            table.join("\n"),
        )
    }
}

fn machine_text(machine: &Machine, isa: Isa, threads: usize) -> String {
    let known = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), human_bytes);
    let caches: Vec<String> = machine
        .caches
        .iter()
        .map(|(level, bytes)| format!("{level} {}", human_bytes(*bytes)))
        .collect();
    let limit = match machine.memory.limit {
        Some(limit) => format!(", this process may use {}", human_bytes(limit)),
        None => String::new(),
    };
    format!(
        "processor       {}\n\
         threads         {threads} of {}\n\
         instruction set {isa} (of {})\n\
         features        {}\n\
         caches          {}\n\
         memory          {} in all, {} available{limit}\n",
        machine.processor.as_deref().unwrap_or("unknown"),
        machine.threads,
        Isa::available()
            .iter()
            .map(Isa::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        machine.features.join(" "),
        if caches.is_empty() {
            "unknown".to_owned()
        } else {
            caches.join(", ")
        },
        known(machine.memory.total),
        known(machine.memory.available),
    )
}
