//! The chat page at `/`: one document without anything from elsewhere, joined from its parts when the program is built.
//!
//! It uses the server's own API: `v1/models`, `v1/chat/completions` as a stream, and, where it exists, `v1/experts`. What models
//! write becomes elements of the document and never HTML, so it cannot run as a script; [`POLICY`] forbids everything else.

/// The document.
pub const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    "<link rel=\"icon\" href=\"data:,\">\n<title>Moeray</title>\n<style>\n",
    include_str!("page.css"),
    "</style>\n</head>\n<body>\n",
    include_str!("page.html"),
    "<script>\n",
    include_str!("markdown.js"),
    "</script>\n<script>\n",
    include_str!("experts.js"),
    "</script>\n<script>\n",
    include_str!("page.js"),
    "</script>\n</body>\n</html>\n",
);

/// The `Content-Security-Policy` to send it with: its own styles and scripts, its own server, nothing else.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                          img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
