import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;

import org.apache.lucene.analysis.core.KeywordAnalyzer;
import org.apache.lucene.document.Document;
import org.apache.lucene.document.Field;
import org.apache.lucene.document.StoredField;
import org.apache.lucene.document.StringField;
import org.apache.lucene.index.CheckIndex;
import org.apache.lucene.index.DirectoryReader;
import org.apache.lucene.index.IndexWriter;
import org.apache.lucene.index.IndexWriterConfig;
import org.apache.lucene.store.FSDirectory;
import org.apache.lucene.store.NoLockFactory;

/**
 * An index of Lucene behind a port, a line for each command: "put N PAYLOAD" (answered when it is committed, so synced),
 * "list" (lines "N MD5", then "end"), "check" (CheckIndex). What Elasticsearch has around Lucene, such as its translog,
 * this has not.
 */
public final class Index {
    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(arguments[0]);
        try (FSDirectory directory = FSDirectory.open(folder);
                ServerSocket server =
                        new ServerSocket(Integer.parseInt(arguments[1]), 50, InetAddress.getLoopbackAddress())) {
            IndexWriter writer = new IndexWriter(directory, new IndexWriterConfig(new KeywordAnalyzer()));
            writer.commit();
            while (true) {
                Socket client = server.accept();
                new Thread(() -> serve(client, directory, writer)).start();
            }
        }
    }

    private static void serve(Socket client, FSDirectory directory, IndexWriter writer) {
        try (client;
                BufferedReader in = new BufferedReader(
                        new InputStreamReader(client.getInputStream(), StandardCharsets.UTF_8));
                PrintWriter out = new PrintWriter(
                        new OutputStreamWriter(client.getOutputStream(), StandardCharsets.UTF_8), true)) {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                String[] words = line.split(" ", 3);
                try {
                    switch (words[0]) {
                        case "put" -> put(writer, words[1], words[2], out);
                        case "list" -> list(directory, out);
                        case "check" -> check(directory, out);
                        default -> out.println("error: no such command");
                    }
                } catch (Exception error) {
                    String what = error + (error.getCause() == null ? "" : ", caused by " + error.getCause());
                    out.println("error: " + what.replace('\n', ' '));
                    System.err.println(what);
                    if (!writer.isOpen()) {
                        // A writer that met a full disk is closed for good, as Elasticsearch fails the shard.
                        System.exit(1);
                    }
                }
            }
        } catch (IOException error) {
            System.err.println(error);
        }
    }

    private static synchronized void put(IndexWriter writer, String number, String payload, PrintWriter out)
            throws IOException {
        Document document = new Document();
        document.add(new StringField("n", number, Field.Store.YES));
        document.add(new StoredField("payload", payload));
        writer.addDocument(document);
        writer.commit();
        out.println("ok " + number);
    }

    private static void list(FSDirectory directory, PrintWriter out) throws Exception {
        try (DirectoryReader reader = DirectoryReader.open(directory)) {
            for (int each = 0; each < reader.maxDoc(); each++) {
                Document document = reader.document(each);
                byte[] sum = MessageDigest.getInstance("MD5")
                        .digest(document.get("payload").getBytes(StandardCharsets.UTF_8));
                StringBuilder hex = new StringBuilder();
                for (byte part : sum) {
                    hex.append(String.format("%02x", part));
                }
                out.println(document.get("n") + " " + hex);
            }
        }
        out.println("end");
    }

    /**
     * Reads all of what the last commit names. Nothing is committed meanwhile: a commit removes the files of the one
     * before it, and they would be missed. Without the writer's lock, for nothing is repaired.
     */
    private static synchronized void check(FSDirectory directory, PrintWriter out) throws IOException {
        ByteArrayOutputStream found = new ByteArrayOutputStream();
        try (CheckIndex checker =
                new CheckIndex(directory, NoLockFactory.INSTANCE.obtainLock(directory, "check"))) {
            checker.setInfoStream(new PrintStream(found, true, StandardCharsets.UTF_8));
            boolean clean = checker.checkIndex().clean;
            if (!clean) {
                System.err.println(found.toString(StandardCharsets.UTF_8));
            }
            out.println(clean ? "clean" : "error: CheckIndex finds damage, see the log of the container");
        }
    }
}
