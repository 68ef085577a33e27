//! Makes cargo see a migration that was added: `sqlx::migrate!` only watches the files it already knows.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
