//! Nothing but opening, reading and closing every file: what packing cannot be faster than on one core.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use super::choose::Chosen;
use crate::error::CliError;

/// What the loop read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) took: Duration,
}

/// Reads everything twice, so that everything is in memory where there is room; the second time counts.
///
/// # Errors
/// When not one of the files can be read.
pub(super) fn read_twice(chosen: &Chosen) -> Result<Reading, CliError> {
    let mut buffer = Vec::new();
    read_all(chosen, &mut buffer);
    let reading = read_all(chosen, &mut buffer);
    if reading.files == 0 {
        return Err(
            CliError::failed("none of the chosen files can be read").hint("check who owns them and their permissions")
        );
    }
    Ok(reading)
}

fn read_all(chosen: &Chosen, buffer: &mut Vec<u8>) -> Reading {
    let (began, mut reading) = (Instant::now(), Reading::default());
    for file in &chosen.files {
        buffer.resize(buffer.len().max(usize::try_from(file.size).unwrap_or(usize::MAX)), 0);
        // What cannot be read is counted where it is packed.
        if let Ok(mut opened) = File::open(&file.path)
            && let Ok(read) = opened.read(buffer)
        {
            reading.files += 1;
            reading.bytes += read as u64;
        }
    }
    Reading { took: began.elapsed(), ..reading }
}
