//! Faults that are asked for, to see what becomes of the job.

use std::str::FromStr;
use std::{io, process};

use clap::ValueEnum;

use crate::directory::Step;

/// Kills this process: no destructor runs, no buffer is flushed, and every thread dies wherever it is.
pub(crate) fn crash(when: &str) -> ! {
    eprintln!("crashing {when}, as asked; go on with --resume");
    process::abort();
}

/// What is to happen in the middle of checkpoints.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) crash_in: Option<Moment>,
    pub(crate) fail_in: Option<Moment>,
}

impl Faults {
    /// Is called when the writing of a checkpoint has come to a step.
    pub(crate) fn at(&self, moment: Moment) -> io::Result<()> {
        let Moment { checkpoint, step } = moment;
        let name = step.to_possible_value().map_or(String::new(), |step| step.get_name().to_owned());
        if self.crash_in == Some(moment) {
            crash(&format!("in checkpoint {checkpoint} of this run at {name}"));
        }
        if self.fail_in == Some(moment) {
            return Err(io::Error::other(format!("checkpoint {checkpoint} of this run fails at {name}, as asked")));
        }
        Ok(())
    }
}

/// A step in the writing of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Counted from 1, in this run.
    pub(crate) checkpoint: u64,
    pub(crate) step: Step,
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("found {text:?}, expected a number and a step, such as 3:renamed");
        let (checkpoint, step) = text.split_once(':').ok_or_else(expected)?;
        let checkpoint = checkpoint.parse().map_err(|_| expected())?;
        let step = Step::from_str(step, false).map_err(|_| {
            let steps = Step::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let steps: Vec<_> = steps.map(|step| step.get_name().to_owned()).collect();
            format!("found the step {step:?}, expected one of {}", steps.join(", "))
        })?;
        Ok(Self { checkpoint, step })
    }
}
