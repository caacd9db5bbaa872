//! What was measured, one JSON file for each measure, so that a run can be taken up again and told later.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Sample {
    pub thing: String,
    /// E.g. `imap.cpu_us`; its unit is the last part.
    pub metric: String,
    pub round: u32,
    pub value: f64,
}

/// All of one measure.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Results {
    pub measure: String,
    pub date: String,
    pub machine: Machine,
    pub samples: Vec<Sample>,
    /// What a reader should know, e.g. that something did not get through.
    pub remarks: Vec<String>,
}

/// On what: nothing that names the machine.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    /// Of each thing that was measured.
    pub versions: Vec<String>,
}

impl Results {
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}.json", self.measure));
        let text = serde_json::to_string_pretty(self)?;
        // whole or not at all: a run may be broken off
        let fresh = path.with_extension("new");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &path).with_context(|| format!("{}", path.display()))
    }

    /// `None` where it was not measured yet.
    pub fn load(folder: &Path, measure: &str) -> Result<Option<Self>> {
        let path = folder.join(format!("{measure}.json"));
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{}", path.display())),
        }
    }

    /// The values of a thing, by round.
    pub fn values(&self, thing: &str, metric: &str) -> Vec<(u32, f64)> {
        let wanted = self.samples.iter().filter(|sample| sample.thing == thing && sample.metric == metric);
        wanted.map(|sample| (sample.round, sample.value)).collect()
    }

    /// Things in the order of their first sample.
    pub fn things(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !found.contains(&sample.thing.as_str()) {
                found.push(&sample.thing);
            }
        }
        found
    }
}
