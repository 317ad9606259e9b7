//! Downloads: models of a hub into Hugging Face's cache, as huggingface_hub lays it out, so that both use the same files.
//!
//! ```text
//! .locks/models--owner--repo/<etag>.lock       held while that file is fetched, by either program
//! models--owner--repo/blobs/<etag>             a file's bytes; <etag>.incomplete until they are all there
//! models--owner--repo/snapshots/<commit>/name  a link to them
//! models--owner--repo/refs/main                the commit, written once every file is there
//! ```
//!
//! Whatever ends a download, the next one goes on where it was: the bytes in `.incomplete` are hashed again, and the rest is asked
//! for by its range. A large file becomes a blob only when its sha256 is the one that the hub says (of small ones the hub says none).
//!
//! Sources: huggingface_hub 2.4 (`file_download.py`); the hub's API documentation.

mod cache;
mod fetch;
mod remote;

use super::{
    Name,
    gguf_files::{self, Variant},
};
use crate::{
    cancel::CancelToken,
    error::{Error, Result},
};
use cache::Repository;
use remote::Remote;
use std::path::PathBuf;

/// Where downloads come from and go to.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The hub's address, such as `https://huggingface.co`.
    pub endpoint: String,
    /// What opens repositories that are not open to everybody. It is sent to the hub alone, not to where it keeps its files.
    pub token: Option<String>,
    /// Hugging Face's cache ([`super::Places::hugging_face`]); made where it is missing.
    pub cache: PathBuf,
    /// A branch, a tag or a commit: `main` as a rule.
    pub revision: String,
    /// Whether proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY` and so on). Nothing else reads it.
    pub proxy_of_environment: bool,
    /// Stops the download; what has come is kept.
    pub cancel: CancelToken,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullProgress<'a> {
    /// The files are known.
    Chosen {
        /// How many.
        files: usize,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// Another program is downloading this file; its end is waited for.
    Waiting {
        /// The file's name in the repository.
        file: &'a str,
    },
    /// Bytes have come.
    Received {
        /// The file's name in the repository.
        file: &'a str,
        /// Of all files, those of earlier downloads included.
        bytes: u64,
    },
    /// The connection broke, and is made anew.
    Again {
        /// The file's name in the repository.
        file: &'a str,
    },
}

/// A model that is on this disk now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// What to open: a GGUF file, the first of a split one, or a folder of safetensors.
    pub path: PathBuf,
    /// The repository's commit.
    pub commit: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Those that came over the network just now.
    pub received: u64,
}

impl PullOptions {
    /// Downloads `owner/repo` or `owner/repo:QUANT`, either behind `hf:`, unless it is there. Of a repository with several GGUFs the
    /// name says which; without that it is the Q4_K_M, as for [`super::Places::find`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is none or does not say which file; [`Error::Network`] where the hub cannot be reached,
    /// refuses, or breaks off again and again; [`Error::Format`] for answers that make no sense, and files whose hash is wrong;
    /// [`Error::Write`]; [`Error::Cancelled`].
    pub fn pull(&self, name: &str, progress: &mut dyn FnMut(PullProgress<'_>)) -> Result<Pulled> {
        let parts = Name::parse(name.trim()).and_then(|n| Some((n.owner?, n)));
        let Some((owner, parts)) = parts else {
            return Err(Error::Invalid(format!(
                "{name:?} is no name of a repository: owner/repo, or owner/repo:QUANT"
            )));
        };
        let repo = format!("{owner}/{}", parts.repo);
        let remote = Remote::new(self)?;
        let listing = remote.list(&repo)?;
        let variants = gguf_files::variants_of(listing.files);
        let place = format!("at {}", self.endpoint);
        let chosen = gguf_files::pick(&variants, &repo, parts.tag, &place)?;
        let repository = Repository::new(&self.cache, &repo, &listing.commit)?;
        let received = fetch_all(&remote, &repository, &repo, chosen, progress)?;
        repository.set_reference(&self.revision)?;
        let path = repository.snapshot().join(&chosen.path);
        Ok(Pulled { path, commit: listing.commit, bytes: chosen.bytes, received })
    }
}

fn fetch_all(
    remote: &Remote<'_>,
    repository: &Repository,
    repo: &str,
    chosen: &Variant,
    progress: &mut dyn FnMut(PullProgress<'_>),
) -> Result<u64> {
    progress(PullProgress::Chosen { files: chosen.files.len(), bytes: chosen.bytes });
    let (mut before, mut received) = (0, 0);
    for path in &chosen.files {
        // The hub's names have slashes.
        let file = path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
        let link = repository.link(&file)?;
        let size = match std::fs::metadata(&link) {
            // What has a link in this commit's snapshot is whole.
            Ok(there) => there.len(),
            Err(_) => {
                let facts = remote.facts(repo, repository.commit(), &file)?;
                let mut of_file = |p: fetch::Step| match p {
                    fetch::Step::Waiting => progress(PullProgress::Waiting { file: &file }),
                    fetch::Step::Again => progress(PullProgress::Again { file: &file }),
                    fetch::Step::Bytes(n) => progress(PullProgress::Received { file: &file, bytes: before + n }),
                };
                received += fetch::blob(remote, repository, &facts, &mut of_file)?;
                repository.make_link(&facts.etag, &link)?;
                facts.size
            }
        };
        before += size;
        progress(PullProgress::Received { file: &file, bytes: before });
    }
    Ok(received)
}
